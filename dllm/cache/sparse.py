"""Sparse-dLLM: the dual cache, of which a block attends to the columns alone that matter to it (arXiv:2508.02558)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.cache.base import Cache, CacheState, StoredView, attention, visibility
from dllm.cache.settling import CountingState
from dllm.canvas import Canvas, Span, highest
from dllm.errors import DllmError
from dllm.kernels.rotary import Rotation, rotate
from dllm.spec import ModelSpec


@dataclass(frozen=True)
class SparseCache(Cache):
    """Compute the block alone, and let it see a share of the other columns, another in each layer (arXiv:2508.02558).

    Everything is computed in the first steps of a block. In the last of these every layer scores the columns outside
    the block: the mean query of the block times their keys, all heads together, the highest of `kernel` neighbours.
    Until the block is finished it attends to the best of them and to what is computed. They are hidden by a mask: that
    spares attention to keys where a kernel can skip them, but no memory, as the paper does by dropping them.
    """

    attentive: ClassVar[bool] = True

    retention: float = 0.5
    """The share of the columns outside the block that stay visible, rounded down."""
    kernel: int = 3
    """How many neighbours share the highest of their scores; an odd number."""
    delay: int = 1
    """The columns are chosen in the step of a block that so many precede; these compute everything too."""

    def __post_init__(self) -> None:
        if (
            isinstance(self.retention, bool)
            or not isinstance(self.retention, int | float)
            or not 0 < self.retention <= 1
        ):
            raise DllmError(f"retention={self.retention!r} is not a share to keep; give more than 0, up to 1 (all).")
        if isinstance(self.kernel, bool) or not isinstance(self.kernel, int) or self.kernel < 1 or self.kernel % 2 == 0:
            raise DllmError(
                f"kernel={self.kernel!r} is not an odd number of columns; give 1 (no neighbours), 3 or more."
            )
        if isinstance(self.delay, bool) or not isinstance(self.delay, int) or self.delay < 0:
            raise DllmError(f"delay={self.delay!r} is not a number of steps; give 0 (choose in the first) or more.")

    def start(self, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> "SparseState":
        return SparseState(self, spec, canvas, dtype)

    def stale(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        assert isinstance(state, SparseState)  # started above
        return (state.step <= self.delay)[:, None].expand(-1, state.canvas.tokens.shape[1])

    def best(self, score: Float[Tensor, "B L"], outside: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """Which of the columns outside the block stay visible."""
        pooled = F.max_pool1d(score.masked_fill(~outside, -torch.inf), self.kernel, 1, self.kernel // 2)
        return highest((outside.sum(1).double() * self.retention).long(), pooled, outside)


class SparseView(StoredView):
    """Attends to what its state keeps visible and to what it computes, and chooses what that is."""

    state: "SparseState"

    def __init__(
        self,
        state: "SparseState",
        rows: Int[Tensor, "B Q"],
        window: Span,
        slots: Int[Tensor, " B"],
        counts: list[int],
        lengths: list[int],
    ) -> None:
        super().__init__(state, rows, window, slots, counts, lengths)
        self.computed = Span(rows, torch.ones_like(rows, dtype=torch.bool)).mask(self.n_keys)
        self.chooses = any(count == length for count, length in zip(counts, lengths, strict=True))
        if self.chooses:
            self.chosen_now = (state.step[slots] == state.sparse.delay + 1)[:, None]
            block = state.present[slots]
            inside, seen = block.mask(self.n_keys), visibility(state.spec, block.columns[:, -1:], lengths)
            self.outside = ~inside if seen is None else ~inside & seen[:, 0, 0]
            # Of padding, which repeats a column, the first entry is the valid one.
            self.asking = inside.gather(1, rows) & ~F.pad(rows[:, 1:] == rows[:, :-1], (1, 0))

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B Q H D"],
        k: Float[Tensor, "B Q K D"],
        v: Float[Tensor, "B Q K D"],
        by: Rotation,
    ) -> Float[Tensor, "B Q H D"]:
        q, k = rotate(q, by), rotate(k, by)
        keys, values = self.store(layer, k, v)
        kept, visible = self.state.kept[layer], self.visible
        shown = self.kept(kept)
        if not self.fresh:
            too = (shown | self.computed)[:, None, None]
            visible = too if visible is None else too & visible
        if self.chooses:
            chosen = self.state.sparse.best(self.score(q, keys), self.outside) | ~self.outside
            kept[self.slots, : self.n_keys] = torch.where(self.chosen_now, chosen, shown)
        return attention(q, keys, values, visible)

    def score(self, q: Float[Tensor, "B Q H D"], keys: Float[Tensor, "B L K D"]) -> Float[Tensor, "B L"]:
        """The mean query of the block times every key, the sum over heads."""
        asking, width = self.asking[..., None, None], q.shape[3]
        mean = (q * asking).sum(1) / asking.sum(1).clamp(min=1)  # (B, H, D)
        return torch.einsum("bkd,blkd->bl", mean.view(len(q), keys.shape[2], -1, width).sum(2), keys)


class SparseState(CountingState):
    """Also knows what each layer keeps visible outside the block."""

    view_class = SparseView

    def __init__(self, cache: SparseCache, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> None:
        super().__init__(cache, spec, canvas, dtype)
        self.sparse = cache
        self.kept = [torch.ones_like(canvas.open) for _ in range(spec.n_layers)]
        """(R, L) for every layer: the columns that the present block may see."""

    def needed(self, scope: Span, block: Span) -> Span:
        self.present = block
        scope = super().needed(scope, block)
        for kept in self.kept:
            kept |= (self.step == 0)[:, None]
        return scope

    def retire(self, keep: Int[Tensor, " R"]) -> None:
        super().retire(keep)
        self.kept = [kept[keep] for kept in self.kept]
