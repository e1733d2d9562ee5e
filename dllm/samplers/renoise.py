"""Entropy-bounded denoising of random tokens: nothing is final before the whole block is."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.errors import DllmError
from dllm.samplers.base import Needs, Prediction, Sampler, check_at_least, check_whole, entropy


@dataclass(frozen=True)
class Renoise(Sampler):
    """Keep draws of little joint entropy, put random tokens elsewhere, and ask again, until the block has settled.

    DiffusionGemma's sampler, for models without a mask. At every step each open column of the block draws a token at a
    temperature that falls from `t_max` towards `t_min`. Of these draws as many are accepted, surest first, as the
    entropies of the ones before the last sum to at most `entropy_bound` (EB-Sampler, arXiv:2505.24857); the other
    columns get new random tokens. Accepted tokens too may change in the next step. The block is decided, by its most
    probable tokens, once these have been the same for `stability_threshold` more steps and their mean entropy is below
    `confidence_threshold`, or after `max_denoising_steps`. Names and defaults are those of transformers.
    """

    entropy_bound: float = 0.1
    """In nats, at the temperature of the step. At least one draw is accepted."""
    t_max: float = 0.8
    t_min: float = 0.4
    max_denoising_steps: int = 48
    """Of a block."""
    stability_threshold: int = 1
    """0: the most probable tokens need not have stayed the same."""
    confidence_threshold: float = 0.005
    """In nats, at the temperature of the step. 0: the block takes all its steps."""

    def __post_init__(self) -> None:
        check_at_least("entropy_bound", self.entropy_bound, 0, "a bound in nats; 0 accepts one draw a step")
        check_at_least("t_max", self.t_max, 0, "the temperature of the first step")
        if isinstance(self.t_min, bool) or not isinstance(self.t_min, int | float) or not 0 < self.t_min <= self.t_max:
            raise DllmError(
                f"t_min={self.t_min!r} must lie above 0 and not above t_max={self.t_max}: the temperatures of the last "
                "step and of the first."
            )
        check_whole("max_denoising_steps", self.max_denoising_steps, 1, "steps of a block")
        check_whole("stability_threshold", self.stability_threshold, 0, "steps without a change")
        check_at_least("confidence_threshold", self.confidence_threshold, 0, "a mean entropy in nats; 0 never stops")

    def needs(self) -> Needs:
        return Needs(noise=True, memory=True, renoises=self.max_denoising_steps)

    def temperature(self, block_step: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        left = (self.max_denoising_steps - block_step) / self.max_denoising_steps
        return self.t_min + (self.t_max - self.t_min) * left

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        h, key = entropy(p.drawn), p.key.at(p.step)
        draws = (p.drawn + key.gumbel(p.span.columns, p.drawn.shape[-1])).argmax(-1)
        noise = key.tokens(p.span.columns, p.drawn.shape[-1])
        going_on = torch.where(self.accepted(h, p.masked), draws, noise)
        return torch.where(p.masked, torch.where(self.settled(p, h)[:, None], p.tokens, ~going_on), p.current)

    def accepted(self, h: Float[Tensor, "B W"], among: Bool[Tensor, "B W"]) -> Bool[Tensor, "B W"]:
        """Where a draw is kept, by the entropies; the surest column always is."""
        ordered, order = h.masked_fill(~among, torch.inf).sort(dim=1, stable=True)
        kept = ordered.cumsum(1) - ordered <= self.entropy_bound
        return torch.zeros_like(among).scatter_(1, order, kept) & among

    def settled(self, p: Prediction, h: Float[Tensor, "B W"]) -> Bool[Tensor, " B"]:
        """Rows whose block is decided now."""
        same = ((p.tokens == p.recall.get("tokens", p.tokens, -1)) | ~p.masked).all(1)
        count = (p.recall.get("same", p.step, 0) + 1) * same
        p.recall.set("tokens", p.tokens)
        p.recall.set("same", count)
        mean = h.masked_fill(~p.masked, 0).sum(1) / p.masked.sum(1)
        stopped = (count >= self.stability_threshold) & (mean < self.confidence_threshold)
        return stopped | (p.block_step + 1 >= self.max_denoising_steps)
