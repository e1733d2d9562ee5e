"""No cache, and the two caches of Fast-dLLM (arXiv:2505.22618), each one method over the same store."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dllm.cache.base import Cache, CacheState, View
from dllm.cache.settling import SettlingState
from dllm.canvas import Canvas, Span
from dllm.errors import DllmError
from dllm.spec import ModelSpec


class Storeless(CacheState):
    """Keeps nothing, so that no memory is spent on keys and values that no forward would read."""

    def __init__(self, cache: Cache, spec: ModelSpec, canvas: Canvas) -> None:
        self.cache, self.spec, self.canvas = cache, spec, canvas
        self.keys, self.values = [], []

    def needed(self, scope: Span, block: Span) -> Span:
        return scope

    def plan(self, window: Span) -> Bool[Tensor, "R L"]:
        return self.canvas.exists

    def view(
        self, plan: Bool[Tensor, "R L"], window: Span, slots: Int[Tensor, " B"], counts: list[int], lengths: list[int]
    ) -> View:
        own = self.canvas.lengths[slots]
        view = View(self.spec, self.canvas.columns[: max(lengths)].minimum(own[:, None] - 1), own, lengths)
        view.deterministic = self.deterministic
        return view

    def skip(self, slots: Int[Tensor, " B"], steps: Int[Tensor, " B"]) -> None: ...

    def admit(self, slot: int) -> None: ...

    def retire(self, keep: Int[Tensor, " R"]) -> None: ...


@dataclass(frozen=True)
class NoCache(Cache):
    """Every forward computes every column, as LLaDA and Dream were published."""

    patterns: ClassVar[tuple[str, ...]] = ("full", "block")
    through: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    def start(self, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> CacheState:
        return Storeless(self, spec, canvas)

    @property
    def drafts(self) -> bool:
        return True

    def step_columns(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        return state.canvas.exists


@dataclass(frozen=True)
class Refreshed(Cache):
    """Everything is recomputed when the window moves to another block, or every `refresh` forwards (None: never)."""

    refresh: int | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.refresh, int) and not isinstance(self.refresh, bool)
        if self.refresh is not None and not (whole and self.refresh >= 1):
            raise DllmError(
                f"refresh={self.refresh!r} is not a number of forwards; give 1 (always recompute) or more, or None."
            )

    @property
    def drafts(self) -> bool:
        return True

    def stale(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        return state.due(self.refresh) | self.step_columns(state, window)

    def steps_before_refresh(self, state: CacheState, full: Bool[Tensor, " R"]) -> Int[Tensor, " R"]:
        if self.refresh is None:
            return super().steps_before_refresh(state, full)
        return (self.refresh - 1 - state.age.masked_fill(full, 0)).clamp(min=0)


@dataclass(frozen=True)
class PrefixCache(Refreshed):
    """Keep what stands before the block, compute the block and all that follows (Fast-dLLM, arXiv:2505.22618)."""

    def step_columns(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        return (state.canvas.columns >= window.columns[:, :1]) & state.canvas.exists


@dataclass(frozen=True)
class VicinityCache(Refreshed):
    """The dual cache that also computes `look` columns on either side of the block (dInfer, arXiv:2510.08666)."""

    look: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.look, bool) or not isinstance(self.look, int) or self.look < 0:
            raise DllmError(f"look={self.look!r} is not a number of columns; give 0 (the dual cache) or more.")

    def step_columns(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        column = state.canvas.columns
        near = (column >= window.columns[:, :1] - self.look) & (column <= window.columns[:, -1:] + self.look)
        return near & state.canvas.exists


@dataclass(frozen=True)
class DualCache(Refreshed):
    """Keep what stands before and after the block, compute the block alone (Fast-dLLM, arXiv:2505.22618)."""

    skip_decoded: bool = False
    """Do not compute those columns of the block again that were computed once with their token. Beyond the paper."""

    def start(self, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> CacheState:
        return (SettlingState if self.skip_decoded else CacheState)(self, spec, canvas, dtype)

    def stale(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        return state.due(self.refresh).expand(-1, state.canvas.tokens.shape[1])

    @property
    def drafts(self) -> bool:
        return not self.skip_decoded

    def step_columns(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        return window.mask(state.canvas.tokens.shape[1])
