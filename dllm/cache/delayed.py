"""dKV-Cache: a column is cached one step after its token is known (arXiv:2505.15781)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dllm.cache.base import Cache, CacheState, View
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


class DelayedState(CacheState):
    """Also which columns were computed with the token that stands there, and the steps of each row in its block."""

    def __init__(self, cache: Cache, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> None:
        super().__init__(cache, spec, canvas, dtype)
        self.final = torch.zeros_like(canvas.open)
        """(R, L): the stored key and value were computed with a token, not with a mask."""
        self.block = torch.full_like(canvas.lengths, -1)
        """Where the present block begins. (R,)"""
        self.step = torch.zeros_like(canvas.lengths)
        """Forwards in the present block. (R,)"""

    @property
    def settled(self) -> Bool[Tensor, "R L"]:
        """Columns that hold a token, and whose stored key and value were computed with it."""
        return self.final & ~self.canvas.undecided

    def needed(self, scope: Span) -> Span:
        self.step = self.step.masked_fill(self.block != scope.columns[:, 0], 0)
        self.block = scope.columns[:, 0]
        kept = ~self.cache.stale(self, scope).gather(1, scope.columns)
        masked = self.canvas.undecided.gather(1, scope.columns)
        # Columns that are not computed stand for the first masked one, as the padding of a span does.
        first = scope.columns.gather(1, masked.long().argmax(1, keepdim=True))
        return replace(scope, columns=torch.where(kept, first, scope.columns), valid=scope.valid & ~kept)

    def view(
        self, plan: Bool[Tensor, "R L"], window: Span, slots: Int[Tensor, " B"], counts: list[int], lengths: list[int]
    ) -> View:
        view = super().view(plan, window, slots, counts, lengths)
        self.final[slots] = torch.where(plan[slots], ~self.canvas.undecided[slots], self.final[slots])
        self.step[slots] += 1
        return view

    def admit(self, slot: int) -> None:
        self.block[slot] = -1
        self.final[slot] = False

    def retire(self, keep: Int[Tensor, " R"]) -> None:
        super().retire(keep)
        self.final, self.block, self.step = self.final[keep], self.block[keep], self.step[keep]
