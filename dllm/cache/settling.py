"""A store that knows which of its keys and values were computed with a token, so that they need not be computed again."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dllm.cache.base import Cache, CacheState, View
from dllm.canvas import Canvas, Span
from dllm.spec import ModelSpec


class SettlingState(CacheState):
    """Leaves columns that are settled and not stale out of what is predicted, and so out of what is computed."""

    def __init__(self, cache: Cache, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> None:
        super().__init__(cache, spec, canvas, dtype)
        self.final = torch.zeros_like(canvas.open)
        """(R, L): the stored key and value were computed with a token, not with a mask."""

    @property
    def settled(self) -> Bool[Tensor, "R L"]:
        """Columns that hold a token, and whose stored key and value were computed with it."""
        return self.final & ~self.canvas.undecided

    def needed(self, scope: Span, block: Span) -> Span:
        super().needed(scope, block)
        kept = (self.settled & ~self.cache.stale(self, scope)).gather(1, scope.columns)
        masked = self.canvas.undecided.gather(1, scope.columns)
        # Columns that are not computed stand for the first masked one, as the padding of a span does.
        first = scope.columns.gather(1, masked.long().argmax(1, keepdim=True))
        return replace(scope, columns=torch.where(kept, first, scope.columns), valid=scope.valid & ~kept)

    def view(
        self, plan: Bool[Tensor, "R L"], window: Span, slots: Int[Tensor, " B"], counts: list[int], lengths: list[int]
    ) -> View:
        view = super().view(plan, window, slots, counts, lengths)
        self.final[slots] = torch.where(plan[slots], ~self.canvas.undecided[slots], self.final[slots])
        return view

    def admit(self, slot: int) -> None:
        super().admit(slot)
        self.final[slot] = False

    def retire(self, keep: Int[Tensor, " R"]) -> None:
        super().retire(keep)
        self.final = self.final[keep]
