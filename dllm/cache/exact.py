"""The caches of block-causal models (BD3-LM, arXiv:2503.09573; SDAR, arXiv:2510.06303; Fast-dLLM v2, arXiv:2509.26328).

A column of such a model sees its block and what stands before it. So once a block is finished, its keys and values are
computed for good, and nothing behind the present block is needed at all.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dllm.cache.base import Cache, CacheState
from dllm.cache.settling import NotingState
from dllm.canvas import Canvas, Span
from dllm.errors import DllmError
from dllm.spec import ModelSpec


@dataclass(frozen=True)
class ExactCache(Cache):
    """Keep finished blocks, compute the present one: the same tokens as without a cache (SDAR, arXiv:2510.06303).

    The first forward of a block also computes the block before it once more, with its last tokens; of a row it computes
    the prompt. So neither takes a forward of its own, and the last block is never computed again.
    """

    patterns: ClassVar[tuple[str, ...]] = ("block",)
    through: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    def start(self, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> CacheState:
        return NotingState(self, spec, canvas, dtype)

    def stale(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        """From the first block in which a token has changed since it was computed, to the end of the window's."""
        assert isinstance(state, NotingState)  # started above
        column, spec = state.canvas.columns, state.spec
        changed = torch.where(state.changed & state.canvas.exists, spec.block_start(column), len(column))
        return (column >= changed.amin(1, keepdim=True)) & (column <= end(spec, window))

    @property
    def drafts(self) -> bool:
        return True

    def step_columns(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        column, spec = state.canvas.columns, state.spec
        blocks = (column >= spec.block_start(state.block)[:, None]) & (column <= end(spec, window))
        return (blocks | window.mask(len(column))) & state.canvas.exists


def end(spec: ModelSpec, window: Span) -> Int[Tensor, "R 1"]:
    """The last column of the window's last block."""
    reach = spec.reach(window.columns.amax(1, keepdim=True))
    assert reach is not None  # no cache of this file serves full attention
    return reach


@dataclass(frozen=True)
class SubblockCache(Cache):
    """Decode a block in parts of `small_block` columns, most steps computing the part alone (arXiv:2509.26328).

    All of the block is computed when it begins, and as long as the first column of the part is masked; in the steps
    after that the keys and values of its other parts stay as they are, which is approximate. A sampler is shown what is
    masked in the part; one that looks at decided columns too is shown its whole scope. Finished blocks are kept as
    `exact` keeps them. A schedule that reveals more in a step than a part has left takes more steps.
    """

    patterns: ClassVar[tuple[str, ...]] = ("block",)

    small_block: int = 8
    """Counted from the block's first column; the block's length or more: the exact cache."""

    def __post_init__(self) -> None:
        if isinstance(self.small_block, bool) or not isinstance(self.small_block, int) or self.small_block < 1:
            raise DllmError(f"small_block={self.small_block!r} is not a number of columns; give 1 or more.")

    def start(self, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> "SubblockState":
        return SubblockState(self, spec, canvas, dtype)

    def stale(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        assert isinstance(state, SubblockState)  # started above
        finished = state.canvas.columns < state.spec.block_start(state.block)[:, None]
        unseen = (state.part & state.canvas.exists & (state.seen < 0)).any(1, keepdim=True)
        return ExactCache().stale(state, window) & (finished | state.part | state.first_masked | unseen)


class SubblockState(NotingState):
    """Also knows which part of its block each row decodes."""

    def __init__(self, cache: SubblockCache, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> None:
        super().__init__(cache, spec, canvas, dtype)
        self.small_block = min(cache.small_block, spec.block_length)

    def needed(self, scope: Span, block: Span) -> Span:
        super().needed(scope, block)
        column, undecided = self.canvas.columns, self.canvas.undecided
        first = undecided.long().argmax(1)
        begin = self.spec.block_start(first)
        start = (begin + (first - begin) // self.small_block * self.small_block)[:, None]
        stop = (start + self.small_block).minimum(begin[:, None] + self.spec.block_length)
        self.part = (column >= start) & (column < stop)
        """(R, L): the columns of the part."""
        self.first_masked = undecided.gather(1, start)
        """(R, 1): whether the first of them is masked."""
        return scope.only((self.part & undecided).gather(1, scope.columns))
