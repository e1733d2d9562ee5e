"""The K/V store of rows that only grow: decoding one token at a time, and verifying trees of drafted ones.

Rows in flight take the slots 0 .. n - 1, so that a forward reads them without copying; the row in the last slot moves
into the place of one that leaves. Shape letters: B rows in flight, Q computed tokens of each, L stored columns, V
vocabulary, C hidden, H heads, K kv heads, D head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.cache.base import Store, attention
from dllm.kernels.rotary import Rotation, rotate


class CausalStore(Store):
    """What a causal model has computed of rows that only grow. `model` is a `dllm.models.transformer.Transformer`."""

    def __init__(self, model: Any, n_rows: int, length: int) -> None:
        super().__init__(model.spec, n_rows, length, model.dtype, model.device)
        self.model, self.n_rows = model, 0
        self.cos, self.sin = model.rotation(length)  # (1, L, 1, D)

    @property
    def length(self) -> int:
        return int(self.cos.shape[1])

    def enter(self) -> int:
        """The slot of a new row."""
        self.n_rows += 1
        return self.n_rows - 1

    def leave(self, slot: int) -> None:
        """A row is gone: the last slot's row takes its place."""
        self.n_rows -= 1
        if slot != self.n_rows:
            for stored in (*self.keys, *self.values):
                stored[slot] = stored[self.n_rows]

    def begin(self, slots: Sequence[int], tokens: Int[Tensor, "B Q"]) -> Float[Tensor, "B Q C"]:
        """Compute the first columns of new rows; a shorter row is filled up behind its end with anything."""
        width = tokens.shape[1]
        self.make_room(width)
        view = Prefill(self, torch.tensor(slots, device=tokens.device)[:, None], width)
        states: Tensor = self.model.states(tokens, view, (self.cos[:, :width], self.sin[:, :width]))
        return states

    def extend(
        self,
        starts: Sequence[int],
        tokens: Int[Tensor, "B Q"],
        depth: Int[Tensor, "B Q"] | None = None,
        ancestors: Bool[Tensor, "B Q Q"] | None = None,
    ) -> Float[Tensor, "B Q C"]:
        """Compute Q more tokens of every row in flight, stored from column starts[b] on.

        They follow each other, or form a tree: then `depth` says how far behind starts[b] each stands in its text, and
        `ancestors` which of the Q each may see, itself included; all see the columns before starts[b].
        """
        width, device = tokens.shape[1], tokens.device
        end = max(starts) + width
        self.make_room(end)
        first, alike = starts[0], min(starts) == max(starts)
        columns, visible = None, None
        if not alike or depth is not None:
            begin = torch.tensor(starts, device=device)[:, None]
        if alike and depth is None:
            by = self.cos[:, first:end], self.sin[:, first:end]
        else:
            place = begin + (torch.arange(width, device=device) if depth is None else depth)
            by = self.cos[0, place], self.sin[0, place]
        if not alike:
            columns = begin + torch.arange(width, device=device)
        if not (alike and width == 1):
            if not alike or ancestors is not None:
                visible = visibility(begin, end, width, ancestors)
            else:
                visible = torch.ones(width, end, dtype=torch.bool, device=device).tril(first)[None, None]
        states: Tensor = self.model.states(tokens, Extend(self, first, columns, width, end, visible), by)
        return states

    def move(self, slots: Sequence[int], source: Sequence[int], target: Sequence[int]) -> None:
        """Copy what is stored at these slots and columns to other columns of the same slots."""
        index = torch.tensor([slots, source, target], device=self.cos.device)
        for stored in (*self.keys, *self.values):
            stored[index[0], index[2]] = stored[index[0], index[1]]

    def make_room(self, length: int) -> None:
        """Be ready for so many columns."""
        if length <= self.length:
            return
        length = max(length, self.length + 64)
        for kept in (self.keys, self.values):
            for layer, stored in enumerate(kept):
                wider = stored.new_zeros(stored.shape[0], length, *stored.shape[2:])
                wider[:, : stored.shape[1]] = stored
                kept[layer] = wider
        self.cos, self.sin = self.model.rotation(length)


def visibility(
    begin: Int[Tensor, "B 1"], end: int, width: int, ancestors: Bool[Tensor, "B Q Q"] | None
) -> Bool[Tensor, "B 1 Q L"]:
    """Which of the columns before `end` the `width` new tokens of each row, stored from `begin` on, may attend to."""
    place = (torch.arange(end, device=begin.device) - begin)[:, None]  # (B, 1, L), 0 where the new tokens begin
    if ancestors is None:
        return (place <= torch.arange(width, device=begin.device)[:, None])[:, None]
    among = ancestors.gather(2, place.clamp(0, width - 1).expand(-1, width, -1))
    return ((place < 0) | (among & (place < width)))[:, None]


class Growing:
    """What the views of a causal store share: all layers, and nothing happens before a layer."""

    def __init__(self, store: CausalStore) -> None:
        self.keys, self.values = store.keys, store.values

    def layers(self, n: int) -> range:
        return range(n)

    def enter(self, _: int, h: Tensor) -> Tensor:
        return h


class Prefill(Growing):
    """The first columns of some rows, which need nothing that is stored."""

    def __init__(self, store: CausalStore, slots: Int[Tensor, "B 1"], width: int) -> None:
        super().__init__(store)
        self.slots, self.columns = slots, torch.arange(width, device=slots.device)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B Q H D"],
        k: Float[Tensor, "B Q K D"],
        v: Float[Tensor, "B Q K D"],
        by: Rotation,
    ) -> Float[Tensor, "B Q H D"]:
        q, k = rotate(q, by), rotate(k, by)
        self.keys[layer][self.slots, self.columns] = k
        self.values[layer][self.slots, self.columns] = v
        return attention(q, k, v, None, causal=True)


class Extend(Growing):
    """More columns of all rows in flight, from `first` on where they are alike, else at `columns`."""

    def __init__(
        self,
        store: CausalStore,
        first: int,
        columns: Int[Tensor, "B Q"] | None,
        width: int,
        end: int,
        visible: Bool[Tensor, "B 1 Q L"] | Bool[Tensor, "1 1 Q L"] | None,
    ) -> None:
        super().__init__(store)
        self.n_rows, self.end, self.visible = store.n_rows, end, visible
        self.place: Any = (slice(store.n_rows), slice(first, first + width))
        if columns is not None:
            self.place = (torch.arange(store.n_rows, device=columns.device)[:, None], columns)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B Q H D"],
        k: Float[Tensor, "B Q K D"],
        v: Float[Tensor, "B Q K D"],
        by: Rotation,
    ) -> Float[Tensor, "B Q H D"]:
        q, k = rotate(q, by), rotate(k, by)
        keys, values = self.keys[layer], self.values[layer]
        keys[self.place], values[self.place] = k, v
        return attention(q, keys[: self.n_rows, : self.end], values[: self.n_rows, : self.end], self.visible)
