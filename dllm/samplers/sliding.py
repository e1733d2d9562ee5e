"""Decoding in a window that slides along the answer, as Elastic-Cache decodes (arXiv:2510.14973)."""

from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from dllm.samplers.base import Needs, Prediction, check_whole
from dllm.samplers.wrapper import Wrapper


@dataclass(frozen=True)
class Sliding(Wrapper):
    """Apply `base` to the first `window` masked columns instead of a whole block (arXiv:2510.14973).

    The answer is one block unless block_length is given; a window does not reach beyond the block. All of the block is
    computed at every step, but for what a cache leaves out: `elastic` computes a window of its own.
    """

    base: Any = "threshold"
    window: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("window", self.window, 1, "masked columns")

    def needs(self) -> Needs:
        return replace(super().needs(), whole_answer=True)

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        return self.inner(replace(p, block=p.block & (p.masked.cumsum(1) <= min(self.window, p.masked.shape[1]))))
