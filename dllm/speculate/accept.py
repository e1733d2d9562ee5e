"""The rules by which drafted tokens are accepted. Each says, for all nodes at once, what may follow what.

A rule gets the target's logits at every node of a batch and returns two things: the token that is chosen to follow
each node if none of its children is accepted, and which nodes may follow their parents. `Tree.walk` reads the path.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm import options
from dllm.errors import DllmError
from dllm.noise import Key
from dllm.speculate.choose import Chooser
from dllm.speculate.tree import Nodes

Verdict = tuple[Int[Tensor, "B Q"], Bool[Tensor, "B Q"]]


@dataclass(frozen=True)
class Rule:
    """An accept rule and its settings."""

    lossless: ClassVar[str]
    """ "exact": the same tokens as without drafts, by the same seed. "distribution": the same probabilities. "no"."""
    coupled: ClassVar[bool] = True
    """Whether a drafter draws with the target's noise; if not it draws with its own, and tells its probabilities."""

    def __call__(self, nodes: Nodes, logits: Float[Tensor, "B Q V"], choose: Chooser, keys: Sequence[int]) -> Verdict:
        raise NotImplementedError(f"{type(self).__name__} does not say what it accepts.")


@dataclass(frozen=True)
class Match(Rule):
    """Choose as without drafts, and accept what was chosen: the same tokens for every drafter (arXiv:2408.07978)."""

    lossless = "exact"

    def __call__(self, nodes: Nodes, logits: Float[Tensor, "B Q V"], choose: Chooser, keys: Sequence[int]) -> Verdict:
        chosen = choose(logits, keys, nodes.starts, nodes.depth, nodes.deepest)
        return chosen, nodes.tokens == chosen.gather(1, nodes.above)


@dataclass(frozen=True)
class Ratio(Rule):
    """Accept x with probability min(1, p(x) / q(x)), else draw from what p has more than q (arXiv:2211.17192).

    Siblings are tried in turn against what is left of p and q, as drawn without replacement (RSD, arXiv:2402.14160). A
    drafted token that was not drawn counts as drawn from a q that has only it.
    """

    lossless = "distribution"
    coupled = False

    def __call__(self, nodes: Nodes, logits: Float[Tensor, "B Q V"], choose: Chooser, keys: Sequence[int]) -> Verdict:
        left = choose.probabilities(logits)  # of the token behind each node, given the siblings refused so far
        broken, vocab_size = left.isnan().any(-1), logits.shape[2]
        key = Key(choose.settings.noise_seed, torch.tensor(keys, device=logits.device))
        columns, q = nodes.following(), nodes.q(vocab_size).nan_to_num(0.0)  # a broken drafter's node is refused
        accepted, tried = torch.zeros_like(nodes.tokens, dtype=torch.bool), torch.zeros_like(left, dtype=torch.bool)
        for rank, child in enumerate(nodes.children()):
            there, token = child > 0, nodes.tokens.gather(1, child)[..., None]
            odds, rest = trial(left, q.gather(1, child[..., None].expand_as(q)).masked_fill(tried, 0.0), token)
            good = there & (key.trial(columns, rank) < odds)
            accepted.scatter_(1, child, good | accepted.gather(1, child))
            tried.scatter_(-1, token, there[..., None] | tried.gather(-1, token))
            left = torch.where((there & ~good)[..., None], rest, left)
        chosen = (left.log() + key.gumbel(columns, vocab_size)).argmax(-1)
        return chosen.masked_fill(broken, -1), accepted


def trial(
    p: Float[Tensor, "*B V"], q: Float[Tensor, "*B V"], token: Int[Tensor, "*B 1"]
) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B V"]]:
    """The odds to accept a token drawn from q, above 1 for certain, and what is left of p where it is refused.

    q may lack the share of siblings that were drawn before.
    """
    q = q / q.sum(-1, keepdim=True).clamp(min=1e-300)
    p_token, q_token = p.gather(-1, token).squeeze(-1), q.gather(-1, token).squeeze(-1)
    rest = (p - q).clamp(min=0.0)
    total = rest.sum(-1, keepdim=True)
    # Where p is q nothing but rounding is left; then the draw is from p.
    odds = (p_token / q_token.clamp(min=1e-300)).masked_fill(q_token == 0, 0.0)  # as a sibling that comes twice
    return odds, torch.where(total > 1e-12, rest / total.clamp(min=1e-300), p)


@dataclass(frozen=True)
class Typical(Rule):
    """Accept what has more than min(epsilon, delta exp(-entropy)) probability: lossy (Medusa, arXiv:2401.10774)."""

    epsilon: float = 0.09
    delta: float = 0.3
    lossless = "no"

    def __post_init__(self) -> None:
        for name in ("epsilon", "delta"):
            if not 0 < getattr(self, name) <= 1:
                raise DllmError(f"{name}={getattr(self, name)!r} of typical must be above 0 and at most 1.")

    def __call__(self, nodes: Nodes, logits: Float[Tensor, "B Q V"], choose: Chooser, keys: Sequence[int]) -> Verdict:
        p = choose.probabilities(logits)
        entropy = torch.special.entr(p).sum(-1)
        least = (self.delta * (-entropy).exp()).clamp(max=self.epsilon)
        token_p = p.gather(1, nodes.above[..., None].expand_as(p)).gather(-1, nodes.tokens[..., None]).squeeze(-1)
        chosen = choose(logits, keys, nodes.starts, nodes.depth, nodes.deepest)
        return chosen, token_p > least.gather(1, nodes.above)


RULES: dict[str, type[Rule]] = {"match": Match, "ratio": Ratio, "typical": Typical}


def rule(name: str | Rule) -> Rule:
    """A rule from its name, with options after a colon: "typical:epsilon=0.1"."""
    return name if isinstance(name, Rule) else options.make("accept rule", RULES, {}, name)
