"""dKV-Cache: a column is cached one step after its token is known (arXiv:2505.15781). Three variants."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from dllm.cache.base import Cache, CacheState
from dllm.cache.settling import CountingState, NotingState, SettlingState
from dllm.canvas import Canvas, Span
from dllm.errors import DllmError
from dllm.spec import ModelSpec


def check_steps(name: str, value: int) -> None:
    """Raise DllmError unless the value is a number of steps, 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DllmError(f"{name}={value!r} is not a number of steps; give 1 (compute all, always) or more.")


@dataclass(frozen=True)
class DelayedCache(Cache):
    """dKV-Cache-Decode: keep what was computed with its token, compute masks and new tokens (arXiv:2505.15781).

    Everything is computed in the first two steps of a block, and in every `refresh`-th step of it. With a shift the
    columns that predict masked ones are computed besides.
    """

    refresh: int = 8

    def __post_init__(self) -> None:
        check_steps("refresh", self.refresh)

    def start(self, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> "DelayedState":
        return DelayedState(self, spec, canvas, dtype)

    def stale(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        assert isinstance(state, DelayedState)  # started above
        step = state.step[:, None]
        return (step < 2) | (step % self.refresh == 0) | ~state.settled


@dataclass(frozen=True)
class PromptDelayedCache(DelayedCache):
    """dKV-Cache-PD: the same, the prompt computed once, or again after `prompt_refresh` steps (arXiv:2505.15781)."""

    prompt_refresh: int | None = None
    """The first refresh this many steps after the prompt was computed computes it too; None: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_refresh is not None:
            check_steps("prompt_refresh", self.prompt_refresh)

    def stale(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        due = (state.anchor < 0)[:, None]  # nothing is stored yet
        if self.prompt_refresh is not None:
            due = due | (state.age >= self.prompt_refresh)[:, None]
        answer = state.canvas.columns >= state.canvas.prompt_lengths[:, None]
        return super().stale(state, window) & (answer | due)


@dataclass(frozen=True)
class GreedyCache(Cache):
    """dKV-Cache-Greedy: compute the next columns, masks near them, and new tokens (dKV-Cache, arXiv:2505.15781).

    Everything is computed in the first step of a block, and in every `refresh`-th step of it. The order of the columns
    must not depend on what is predicted: the sampler announces them.
    """

    announced: ClassVar[bool] = True

    refresh: int = 8
    window: int = 4
    """How many masks are computed around each of the next columns, half of them on either side where there are."""

    def __post_init__(self) -> None:
        check_steps("refresh", self.refresh)
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 0:
            raise DllmError(f"window={self.window!r} is not a number of masks; give 0 (none) or more.")

    def start(self, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> "GreedyState":
        return GreedyState(self, spec, canvas, dtype)

    def stale(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        assert isinstance(state, GreedyState)  # started above
        return state.due(self.refresh) | state.changed | state.near(self.window)


class GreedyState(NotingState):
    """Also knows which columns come next."""

    def needed(self, scope: Span, block: Span) -> Span:
        self.next = scope
        return super().needed(scope, block)

    def near(self, n: int) -> Bool[Tensor, "R L"]:
        """Each of the next columns and the n masks around it; more on one side where the other has too few."""
        masked = self.canvas.undecided
        rank, last = masked.cumsum(1) - 1, masked.sum(1, keepdim=True) - 1
        centre = rank.gather(1, self.next.columns)
        first = (centre - (n + 1) // 2).minimum(last - n).clamp(min=0)[..., None]  # (R, W, 1)
        return ((rank[:, None] >= first) & (rank[:, None] <= first + n)).any(1) & masked


class DelayedState(CountingState, SettlingState):
    """Counts the steps of a block, and leaves out what is settled."""
