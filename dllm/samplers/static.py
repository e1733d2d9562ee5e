"""LLaDA's static schedule: so many tokens a step, the surest first or in random order (arXiv:2502.09992)."""

from dataclasses import dataclass

from jaxtyping import Bool, Int
from torch import Tensor

from dllm.canvas import highest
from dllm.noise import Key
from dllm.samplers.base import Needs, Prediction, Sampler


@dataclass(frozen=True)
class Static(Sampler):
    """Reveal the most probable tokens, `steps` spread evenly over the canvas ("low-confidence remasking")."""

    def needs(self) -> Needs:
        return Needs(plain=True)

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        return p.reveal(p.top(p.quota))


@dataclass(frozen=True)
class Random(Static):
    """The same schedule in random order; the tokens themselves are still the most probable ones."""

    def needs(self) -> Needs:
        return Needs(noise=True)

    def announce(
        self, masked: Bool[Tensor, "B W"], columns: Int[Tensor, "B W"], quota: Int[Tensor, " B"], key: Key
    ) -> Bool[Tensor, "B W"]:
        return highest(quota, key.uniform(columns), masked)

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        return p.reveal(self.announce(p.masked, p.span.columns, p.quota, p.key))
