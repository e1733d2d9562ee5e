"""The state of a network that reads what stands before a block by an encoder of its own, and keeps that itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.cache.base import Cache, CacheState, View
from dllm.cache.policies import Storeless
from dllm.canvas import Canvas, Span
from dllm.spec import ModelSpec


@dataclass
class Note:
    """What such a network keeps of one row in flight from forward to forward."""

    prefix: Any = None
    """Its store of the columns before `encoded`, whatever that is; its bytes are not counted."""
    encoded: int = 0
    condition: Float[Tensor, "W V"] | None = None
    """What the tokens of the block were drawn from in the step before; None in the first."""


class EncoderView(View):
    """One forward: of every row the columns to encode first, then its block, which is predicted."""

    def __init__(self, rows: Int[Tensor, "B Q"], notes: list[Note], fresh: list[range]) -> None:
        self.rows, self.notes, self.fresh = rows, notes, fresh


class EncoderState(Storeless):
    """A note for every row in flight. Blocks of one run have one width."""

    def __init__(self, cache: Cache, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> None:
        super().__init__(cache, spec, canvas)
        self.dtype = dtype
        self.notes = [Note() for _ in canvas.tokens]
        self.block, self.encoded = torch.zeros_like(canvas.lengths), torch.zeros_like(canvas.lengths)

    def needed(self, scope: Span, block: Span) -> Span:
        self.block = block.columns[:, 0]
        return scope

    def plan(self, window: Span) -> Bool[Tensor, "R L"]:
        columns = self.canvas.columns
        fresh = (columns >= self.encoded[:, None]) & (columns < self.block[:, None])
        return (fresh | window.mask(len(columns))) & self.canvas.exists

    def view(
        self, plan: Bool[Tensor, "R L"], window: Span, slots: Int[Tensor, " B"], counts: list[int], lengths: list[int]
    ) -> View:
        notes, fresh = [self.notes[slot] for slot in slots.tolist()], []
        for note, count in zip(notes, counts, strict=True):
            fresh.append(range(note.encoded, note.encoded + count - window.columns.shape[1]))
            if fresh[-1]:
                note.encoded, note.condition = fresh[-1].stop, None
        self.encoded[slots] = self.block[slots]
        return EncoderView(Span.where(plan[slots], max(counts)).columns, notes, fresh)

    def saw(
        self,
        index: Int[Tensor, " B"],
        span: Span,
        confidence: Float[Tensor, "B W"],
        draws: Callable[[], Tensor],
    ) -> None:
        for slot, condition in zip(index.tolist(), draws().to(self.dtype), strict=True):
            self.notes[slot].condition = condition

    def admit(self, slot: int) -> None:
        self.notes[slot], self.encoded[slot] = Note(), 0

    def retire(self, keep: Int[Tensor, " R"]) -> None:
        self.notes, self.encoded = [self.notes[slot] for slot in keep.tolist()], self.encoded[keep]


@dataclass(frozen=True)
class EncoderCache(Cache):
    """What stands before a block is encoded once, by the network itself; not a choice, but how such models run."""

    patterns: ClassVar[tuple[str, ...]] = ("canvas",)
    lossless: ClassVar[bool] = True

    def start(self, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> CacheState:
        return EncoderState(self, spec, canvas, dtype)
