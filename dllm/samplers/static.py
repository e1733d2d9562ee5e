"""LLaDA's static schedule: so many tokens a step, the surest first or in random order (arXiv:2502.09992)."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from dllm.samplers.base import Prediction, Sampler


@dataclass(frozen=True)
class Static(Sampler):
    """Reveal the most probable tokens, `steps` spread evenly over the canvas ("low-confidence remasking")."""

    def quota(
        self, masked: Int[Tensor, " B"], steps: Int[Tensor, " B"], step: Int[Tensor, " B"]
    ) -> Int[Tensor, " B"]:
        # The first (masked mod steps) steps take one more; a step of nothing would be a wasted forward.
        return (masked // steps + (step < masked % steps)).clamp(min=1)

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        return p.reveal(p.top(1 if p.quota is None else p.quota))


@dataclass(frozen=True)
class Random(Static):
    """The same schedule in random order; the tokens themselves are still the most probable ones."""

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        return p.reveal(p.top(1 if p.quota is None else p.quota, p.key.uniform(p.span.columns)))
