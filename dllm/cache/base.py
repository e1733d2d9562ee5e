"""The K/V store and its two faces: a policy that says which rows are stale, and a view for one forward.

A column's key is stored after rotation at its absolute column, so that recomputing other columns leaves it valid and
nothing is ever concatenated, cropped or moved. Shape letters: R rows in flight, B rows of a forward, L canvas columns,
Q computed columns, W span, H heads, K kv heads, D head width.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm import transfer
from dllm.canvas import Canvas, Span
from dllm.kernels.attention import Attended, Side
from dllm.kernels.attention import attention as stored_attention
from dllm.kernels.jit import suits
from dllm.kernels.rotary import Rotation, rotate
from dllm.kernels.write_rows import write_rows
from dllm.spec import ModelSpec


def attention(
    q: Float[Tensor, "B Q H D"],
    k: Float[Tensor, "B L K D"],
    v: Float[Tensor, "B L K D"],
    visible: Bool[Tensor, "#B 1 _ L"] | None,
    causal: bool = False,
) -> Float[Tensor, "B Q H D"]:
    """Softmax attention of every query to all visible keys; None means all of them. Query heads share K/V in groups.

    causal: query i sees the keys 0 .. i instead, which needs no mask in memory.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    shared = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal, enable_gqa=shared)
    return out.transpose(1, 2)


class View:
    """One forward: the columns it computes and may see. This one computes all and stores nothing.

    rows: Int[B, Q], ascending; a row with fewer than Q columns repeats its last one. lengths: how many columns each row
    has. ends: how many of them, from the first on, its forward may attend to, as the host knows it: it says how much is
    read, and whether some rows see less.
    """

    deterministic = False
    """Whether what a row gets must not depend on the batch it is in."""

    def __init__(self, spec: ModelSpec, rows: Int[Tensor, "B Q"], lengths: Int[Tensor, " B"], ends: list[int]) -> None:
        self.spec, self.rows, self.lengths = spec, rows, lengths
        self.n_keys, self.alike = max(ends), min(ends) == max(ends)

    @cached_property
    def reach(self) -> Int[Tensor, "B Q"] | None:
        """The last column that each of the rows may attend to; None where all may attend to all that exist."""
        return self.spec.reach(self.positions)

    @cached_property
    def visible(self) -> Bool[Tensor, "B 1 Q L"] | Bool[Tensor, "B 1 1 L"] | None:
        """Which columns each of the rows may attend to; None: all."""
        return self.visibility(self.rows)

    def visibility(self, columns: Int[Tensor, "B Q"]) -> Bool[Tensor, "B 1 Q L"] | Bool[Tensor, "B 1 1 L"] | None:
        """Which columns these may attend to: those that exist and that the model's pattern reaches. None: all."""
        key, reach = torch.arange(self.n_keys, device=columns.device), self.spec.reach(columns)
        if reach is None and self.alike:
            return None
        exists = key < self.lengths[:, None, None, None]
        return exists if reach is None else exists & (key <= reach[:, None, :, None])

    @property
    def positions(self) -> Int[Tensor, "B Q"]:
        """Where the rows stand in their text, for the rotary angles."""
        return self.rows

    def find(self, span: Span) -> Int[Tensor, "B W"]:
        """Where the columns of `span` stand among the rows. Raises ValueError if one of them is not computed."""
        index = torch.searchsorted(self.rows, span.columns).clamp_(max=self.rows.shape[1] - 1)
        # On a GPU this check would stall the queue of kernels; the plan of every cache contains its window.
        if transfer.near(self.rows.device) and not torch.equal(self.rows.gather(1, index), span.columns):
            raise ValueError(
                f"the view computes the columns {self.rows.tolist()}, which lack some of {span.columns.tolist()}; "
                "a cache's plan must contain the whole window."
            )
        return index

    def layers(self, n: int) -> Iterable[int]:
        """Which of the model's n layers compute the rows, ascending."""
        return range(n)

    def enter(self, layer: int, h: Float[Tensor, "B Q C"]) -> Float[Tensor, "B Q C"]:
        """Called before every layer with its input; what comes back is the input instead."""
        return h

    def repairs(self) -> Iterator[tuple[list[int], "View", int]]:
        """After the forward: rows of the batch to compute again, the view that does it, and in how many layers."""
        return iter(())

    def store(
        self, layer: int, k: Float[Tensor, "B Q K D"], v: Float[Tensor, "B Q K D"]
    ) -> tuple[Float[Tensor, "B L K D"], Float[Tensor, "B L K D"]]:
        """Keep the rows' keys and values; all that may be attended to comes back."""
        return k, v

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B Q H D"],
        k: Float[Tensor, "B Q K D"],
        v: Float[Tensor, "B Q K D"],
        by: Rotation,
    ) -> Float[Tensor, "B Q H D"]:
        """Attention of the rows. q, k: before their rotation `by` the angles of the rows."""
        q, k = rotate(q, by), rotate(k, by)
        if self.deterministic and suits(q):
            slots = torch.arange(len(q), device=q.device)
            k, v = k.contiguous(), v.contiguous()
            return stored_attention(q, k, v, slots, self.lengths, self.reach, deterministic=True)[0]
        return attention(q, *self.store(layer, k, v), self.visible)


def full_view(spec: ModelSpec, lengths: list[int], device: torch.device | str = "cpu") -> View:
    """Every column of every row, nothing stored: training, likelihoods, the cache-free forward."""
    column, length = torch.arange(max(lengths), device=device), torch.tensor(lengths, device=device)
    return View(spec, column.minimum(length[:, None] - 1), length, lengths)


class StoredView(View):
    """Writes the K/V of its rows into the store, then attends to the stored columns of the batch rows `slots`."""

    def __init__(
        self,
        state: "CacheState",
        rows: Int[Tensor, "B Q"],
        window: Span,
        slots: Int[Tensor, " B"],
        counts: list[int],
        lengths: list[int],
    ) -> None:
        super().__init__(state.spec, rows, state.canvas.lengths[slots], lengths)
        self.state, self.slots = state, slots
        self.deterministic = state.deterministic
        self.fresh = counts == lengths  # every column is computed here: nothing is read from the store
        self.everyone = len(slots) == len(state.anchor)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B Q H D"],
        k: Float[Tensor, "B Q K D"],
        v: Float[Tensor, "B Q K D"],
        by: Rotation,
    ) -> Float[Tensor, "B Q H D"]:
        if not suits(q):
            return super().attend(layer, q, k, v, by)
        # Of whole rows of one length torch's own attention is as fast as there is.
        if self.fresh and self.alike and self.reach is None and not self.deterministic:
            return attention(*self.write(layer, q, k, v, by, 0), v, None)
        return self.look(layer, self.write(layer, q, k, v, by, q.shape[1])[0])[0]

    def write(
        self,
        layer: int,
        q: Float[Tensor, "B QS H D"],
        k: Float[Tensor, "B QS K D"],
        v: Float[Tensor, "B QS K D"],
        by: Rotation,
        keys_from: int,
    ) -> tuple[Float[Tensor, "B QS H D"], Float[Tensor, "B _ K D"]]:
        """On a GPU: store the rows, the first of those given. All rotated queries, the rotated keys of `keys_from` on.

        A kernel leaves out padding, which repeats a row's last column.
        """
        return write_rows(
            q, k, v, by, self.state.keys[layer], self.state.values[layer], self.slots, self.rows, keys_from
        )

    def look(
        self,
        layer: int,
        q: Float[Tensor, "B Q H D"],
        reach: Int[Tensor, "B Q"] | None = None,
        side: Side | None = None,
    ) -> Attended:
        """On a GPU: attention to the store where it stands. reach: of other queries than the rows'."""
        return stored_attention(
            *(q, self.state.keys[layer], self.state.values[layer], self.slots, self.lengths),
            *(self.reach if reach is None else reach, side, self.deterministic),
        )

    def store(
        self, layer: int, k: Float[Tensor, "B Q K D"], v: Float[Tensor, "B Q K D"]
    ) -> tuple[Float[Tensor, "B L K D"], Float[Tensor, "B L K D"]]:
        keys, values = self.state.keys[layer], self.state.values[layer]
        # Padding repeats a row's last column, and so writes its key and value again, equal up to rounding.
        keys[self.slots[:, None], self.rows] = k
        values[self.slots[:, None], self.rows] = v
        return (k, v) if self.fresh else (self.kept(keys), self.kept(values))

    def kept(self, stored: Tensor) -> Tensor:
        """What is stored for the rows of this forward, (B, L, ...)."""
        return (stored if self.everyone else stored[self.slots])[:, : self.n_keys]


@dataclass(frozen=True)
class Cache:
    """Settings of a cache, and its one rule: which columns must be computed besides the window."""

    announced: ClassVar[bool] = False
    """It must know which columns are revealed next, before they are predicted."""
    attentive: ClassVar[bool] = False
    """It looks at the attention of a forward, in which no shadow rows may take part."""
    patterns: ClassVar[tuple[str, ...]] = ("full",)
    """The patterns of attention that it was made for, as `ModelSpec.attention` names them."""
    through: ClassVar[bool] = False
    """No block begins with a refresh, so that drafts may go on from one block into the next (eager)."""
    lossless: ClassVar[bool] = False
    """What is predicted with it is what is predicted without a cache."""

    def start(self, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> "CacheState":
        return CacheState(self, spec, canvas, dtype)

    @property
    def drafts(self) -> bool:
        """Whether several steps can be drafted on the store: what they read is not what the step before them wrote."""
        return False

    def stale(self, state: "CacheState", window: Span) -> Bool[Tensor, "R L"]:
        """True at the columns whose stored K/V must not be used. Columns beyond a row's length do not matter."""
        raise NotImplementedError(f"{type(self).__name__} does not say which rows are stale.")

    def step_columns(self, state: "CacheState", window: Span) -> Bool[Tensor, "R L"]:
        """The columns that a step of a block computes which is no refresh; asked of a cache that has drafts."""
        raise NotImplementedError(f"{type(self).__name__} does not say which columns a draft computes.")

    def steps_before_refresh(self, state: "CacheState", full: Bool[Tensor, " R"]) -> Int[Tensor, " R"]:
        """How many such steps may follow each row's next one before a refresh is due. full: rows whose next is one."""
        return torch.full_like(state.canvas.lengths, state.canvas.tokens.shape[1])


class Store:
    """Keys and values of every layer, (R, L, K, D) each, after rotation."""

    def __init__(self, spec: ModelSpec, n_rows: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (n_rows, length, spec.n_kv_heads, spec.head_dim)
        # Zeros, not uninitialised memory: 0 x NaN would leak from columns that attention masks out.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(spec.n_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(spec.n_layers)]

    @property
    def nbytes(self) -> int:
        """Bytes of the stored keys and values: 2 · layers · rows · columns · kv heads · head width · dtype."""
        return sum(stored.nbytes for stored in (*self.keys, *self.values))


class CacheState(Store):
    """The stored keys and values of one generation of a canvas, and when each row was refreshed."""

    view_class: type[StoredView] = StoredView
    deterministic = False
    """What its views are."""

    def __init__(self, cache: Cache, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> None:
        n_rows, length = canvas.tokens.shape
        super().__init__(spec, n_rows, length, dtype, canvas.tokens.device)
        self.cache, self.spec, self.canvas = cache, spec, canvas
        self.block = torch.full_like(canvas.lengths, -1)
        """First column of the present block; -1 before the first forward. (R,)"""
        self.anchor = torch.full_like(canvas.lengths, -2)
        """The same at the last refresh; -2 before the first. (R,)"""
        self.age = torch.zeros_like(canvas.lengths)
        """Forwards since the last refresh, that one included. (R,)"""

    def due(self, refresh: int | None) -> Bool[Tensor, "R 1"]:
        """Rows that moved to another block, or that were last refreshed `refresh` forwards ago."""
        moved = self.anchor != self.block
        return (moved if refresh is None else moved | (self.age >= refresh))[:, None]

    def skip(self, slots: Int[Tensor, " B"], steps: Int[Tensor, " B"]) -> None:
        """Steps were taken without forwards of their own."""
        self.age[slots] += steps

    def needed(self, scope: Span, block: Span) -> Span:
        """What of a scope must be predicted in these blocks; a cache may leave out what is decided and has its K/V."""
        self.block = block.columns[:, 0].clone()  # it is written to, one row at a time
        return scope

    def plan(self, window: Span) -> Bool[Tensor, "R L"]:
        """The columns that the next forward of each row computes: the window and what the policy calls stale."""
        exists = self.canvas.exists
        return (self.cache.stale(self, window) | window.mask(exists.shape[1])) & exists

    def view(
        self, plan: Bool[Tensor, "R L"], window: Span, slots: Int[Tensor, " B"], counts: list[int], lengths: list[int]
    ) -> View:
        """The next forward of the rows `slots`, with how many columns each of them computes and has."""
        rows = Span.where(plan[slots], max(counts)).columns
        full = plan[slots].sum(1) == self.canvas.lengths[slots]
        self.anchor[slots] = torch.where(full, self.block[slots], self.anchor[slots])
        self.age[slots] = self.age[slots].masked_fill(full, 0) + 1
        return self.view_class(self, rows, window[slots], slots, counts, lengths)

    def saw(
        self, index: Int[Tensor, " B"], span: Span, confidence: Float[Tensor, "B W"], draws: Callable[[], Tensor]
    ) -> None:
        """How probable the tokens are that were just proposed for these columns of the rows `index`.

        draws: makes what they were drawn from, (B, W, V).
        """

    def admit(self, slot: int) -> None:
        """Another prompt has taken the row: nothing stored for it is valid."""
        transfer.write(self.block, slot, -1)
        transfer.write(self.anchor, slot, -2)

    def retire(self, keep: Int[Tensor, " R"]) -> None:
        """Only these rows go on, in this order. A row may only move to the left, past rows that are gone."""
        moves = [(to, row) for to, row in enumerate(keep.tolist()) if to != row]
        for kept in (self.keys, self.values):
            for layer, stored in enumerate(kept):
                for to, row in moves:
                    stored[to] = stored[row]
                kept[layer] = stored[: len(keep)]  # the memory stays where it is: recorded steps write to it
        self.block, self.anchor, self.age = self.block[keep], self.anchor[keep], self.age[keep]
