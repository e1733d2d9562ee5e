"""Stores that know more: a block's steps, the tokens that keys and values were computed with, which are settled."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dllm.cache.base import Cache, CacheState, View
from dllm.canvas import Canvas, Span
from dllm.spec import ModelSpec


class CountingState(CacheState):
    """Counts the steps of each row in its block."""

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


class NotingState(CacheState):
    """Notes the token of every column at the forward that computed it."""

    def __init__(self, cache: Cache, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> None:
        super().__init__(cache, spec, canvas, dtype)
        self.seen = torch.full_like(canvas.tokens, -1)
        """(R, L): the token with which the stored key and value were computed; -1 before the first forward."""

    @property
    def changed(self) -> Bool[Tensor, "R L"]:
        """Columns whose token is another than their stored key and value were computed with."""
        return self.seen != self.canvas.tokens

    def view(
        self, plan: Bool[Tensor, "R L"], window: Span, slots: Int[Tensor, " B"], counts: list[int], lengths: list[int]
    ) -> View:
        view = super().view(plan, window, slots, counts, lengths)
        self.seen[slots] = torch.where(plan[slots], self.canvas.tokens[slots], self.seen[slots])
        return view

    def admit(self, slot: int) -> None:
        super().admit(slot)
        self.seen[slot] = -1

    def retire(self, keep: Int[Tensor, " R"]) -> None:
        super().retire(keep)
        self.seen = self.seen[keep]


class SettlingState(NotingState):
    """Leaves columns that are settled and not stale out of what is predicted, and so out of what is computed."""

    @property
    def settled(self) -> Bool[Tensor, "R L"]:
        """Columns that hold a token, and whose stored key and value were computed with it."""
        return ~self.changed & ~self.canvas.undecided

    def needed(self, scope: Span, block: Span) -> Span:
        super().needed(scope, block)
        return scope.only(~(self.settled & ~self.cache.stale(self, scope)).gather(1, scope.columns))
