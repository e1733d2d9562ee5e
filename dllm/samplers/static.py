"""LLaDA's static schedule: so many tokens a step, the surest first or in random order (arXiv:2502.09992)."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from dllm.samplers.base import Prediction, Sampler


@dataclass(frozen=True)
class Static(Sampler):
    """Reveal the most probable tokens, `steps` spread evenly over the canvas ("low-confidence remasking")."""

    def quota(self, p: Prediction) -> Int[Tensor, " B"]:
        """How many tokens to reveal now. The first (masked mod steps) steps of a block take one more than the others."""
        more = p.block_step < p.block_masked % p.block_steps
        return (p.block_masked // p.block_steps + more).clamp(min=1)  # a step of nothing would be a wasted forward

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        return p.reveal(p.top(self.quota(p)))


@dataclass(frozen=True)
class Random(Static):
    """The same schedule in random order; the tokens themselves are still the most probable ones."""

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        return p.reveal(p.top(self.quota(p), p.key.uniform(p.span.columns)))
