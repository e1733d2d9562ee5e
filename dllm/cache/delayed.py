"""dKV-Cache: a column is cached one step after its token is known (arXiv:2505.15781)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dllm.cache.base import Cache, CacheState, View
from dllm.cache.settling import SettlingState
from dllm.canvas import Canvas, Span
from dllm.errors import DllmError
from dllm.spec import ModelSpec


@dataclass(frozen=True)
class DelayedCache(Cache):
    """dKV-Cache-Decode: keep what was computed with its token, compute masks and new tokens (dKV-Cache, arXiv:2505.15781).

    Everything is computed in the first two steps of a block, and in every `refresh`-th step of it. With a shift the
    columns that predict masked ones are computed besides.
    """

    refresh: int = 8

    def __post_init__(self) -> None:
        if isinstance(self.refresh, bool) or not isinstance(self.refresh, int) or self.refresh < 1:
            raise DllmError(f"refresh={self.refresh!r} is not a number of steps; give 1 (compute all, always) or more.")

    def start(self, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> "DelayedState":
        return DelayedState(self, spec, canvas, dtype)

    def stale(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        assert isinstance(state, DelayedState)  # started above
        step = state.step[:, None]
        return (step < 2) | (step % self.refresh == 0) | ~state.settled


class DelayedState(SettlingState):
    """Also counts the steps of each row in its block."""

    def __init__(self, cache: Cache, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> None:
        super().__init__(cache, spec, canvas, dtype)
        self.step = torch.zeros_like(canvas.lengths)
        """Forwards in the present block. (R,)"""

    def needed(self, scope: Span, block: Span) -> Span:
        self.step = self.step.masked_fill(self.block != block.columns[:, 0], 0)
        return super().needed(scope, block)

    def view(
        self, plan: Bool[Tensor, "R L"], window: Span, slots: Int[Tensor, " B"], counts: list[int], lengths: list[int]
    ) -> View:
        self.step[slots] += 1
        return super().view(plan, window, slots, counts, lengths)

    def retire(self, keep: Int[Tensor, " R"]) -> None:
        super().retire(keep)
        self.step = self.step[keep]
