"""Dream's four orders on its own timesteps, linspace(1, eps, steps + 1) (arXiv:2508.15487).

Probabilities are those that the tokens are drawn from: at the temperature, cut to top_p and top_k. The answer is one
block unless block_length is given; then every block has its own timesteps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dllm.errors import DllmError
from dllm.kernels.token_stats import TokenStats
from dllm.samplers.base import Needs, Prediction, Sampler, check_at_least


@lru_cache(maxsize=256)
def counts(masked: int, steps: int, eps: float) -> tuple[int, ...]:
    """Tokens of each step: int(masks left · (1 - s / t)), all that is left in the last; steps of none are left out.

    In float32 like the published code, where rounding down makes the first step of 256 / 256 one of none.
    """
    t = torch.linspace(1, eps, steps + 1)
    shares, found = 1 - t[1:] / t[:-1], []
    for share in shares[:-1]:
        found.append(int(masked * share))
        masked -= found[-1]
    return tuple(n for n in [*found, masked] if n)


@dataclass(frozen=True)
class DreamOrder(Sampler):
    """What Dream's orders share: the timesteps."""

    eps: float = 1e-3
    """The last timestep."""

    def __post_init__(self) -> None:
        if isinstance(self.eps, bool) or not isinstance(self.eps, int | float) or not 0 < self.eps < 1:
            raise DllmError(f"eps={self.eps!r} is no last timestep; give a value between 0 and 1, as 0.001.")

    def quotas(self, masked: int, steps: int) -> Sequence[int]:
        return counts(masked, steps, self.eps)


@dataclass(frozen=True)
class Origin(DreamOrder):
    """Reveal every masked column with the probability of its timestep, whatever the model is sure of.

    A column's timestep can be drawn before the first step: it is revealed once the time is below its uniform number.
    So the steps that would reveal nothing are known, and skipped.
    """

    def needs(self) -> Needs:
        return Needs(whole_answer=True, noise=True)

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        u = p.key.uniform(p.span.columns)
        highest = u.masked_fill(~p.masked, 0.0).amax(1)
        step = ((1 - highest) * p.block_steps / (1 - self.eps)).floor() + 1  # the first whose timestep is below
        timestep = (1 - step * (1 - self.eps) / p.block_steps).masked_fill(step >= p.block_steps, 0.0)
        return p.reveal((u > timestep[:, None]) | p.top(1, u))


@dataclass(frozen=True)
class Ordered(DreamOrder):
    """Reveal the tokens with the highest score, as many as the timesteps say."""

    alg_temp: float = 0.0
    """0: the highest scores; above: drawn without replacement from softmax(score / alg_temp)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("alg_temp", self.alg_temp, 0, "0 takes the highest scores, more draws among them")

    def needs(self) -> Needs:
        return Needs(whole_answer=True, noise=self.alg_temp > 0)

    def score(self, p: Prediction, q: Float[Tensor, "B W V"]) -> Float[Tensor, "B W"]:
        """How sure the model is of each column; q are the probabilities that the tokens were drawn from."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it is sure of.")

    def found(self, stats: TokenStats) -> Float[Tensor, "B W"]:
        """The same of the logits themselves, as one pass over them has found it."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it is sure of.")

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        if p.stats and p.drawn is p.logits:
            score = self.found(p.stats)
        else:
            score = self.score(p, p.drawn.to(torch.promote_types(p.drawn.dtype, torch.float32)).softmax(-1))
        if self.alg_temp > 0:
            # The k highest of score / temperature + Gumbel noise are k draws without replacement.
            highest = score.masked_fill(~p.masked, -torch.inf).amax(1, keepdim=True)
            score = (score - highest).double() / self.alg_temp - (-p.key.uniform(p.span.columns).log()).log()
        return p.reveal(p.top(p.quota, score))


@dataclass(frozen=True)
class MaskgitPlus(Ordered):
    """Reveal the most probable tokens."""

    def score(self, p: Prediction, q: Float[Tensor, "B W V"]) -> Float[Tensor, "B W"]:
        return q.gather(-1, p.tokens[..., None]).squeeze(-1)

    def found(self, stats: TokenStats) -> Float[Tensor, "B W"]:
        return stats.confidence


@dataclass(frozen=True)
class TopkMargin(Ordered):
    """Reveal where the most probable token leads the second by most."""

    def score(self, p: Prediction, q: Float[Tensor, "B W V"]) -> Float[Tensor, "B W"]:
        top = q.topk(2, -1).values
        return top[..., 0] - top[..., 1]

    def found(self, stats: TokenStats) -> Float[Tensor, "B W"]:
        return stats.margin


@dataclass(frozen=True)
class Entropy(Ordered):
    """Reveal where the distribution's entropy is lowest."""

    def score(self, p: Prediction, q: Float[Tensor, "B W V"]) -> Float[Tensor, "B W"]:
        return (q * (q + 1e-10).log()).sum(-1)

    def found(self, stats: TokenStats) -> Float[Tensor, "B W"]:
        return -stats.entropy
