"""Views with side rows: computed beside those of another view, seen by none of them, and never stored.

Shape letters: B rows of the batch, Q columns of the other view, S side rows, N drafts, L canvas columns, W span,
H heads, K kv heads, D head width.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.cache.base import StoredView, View, attention
from dllm.canvas import Span
from dllm.kernels.attention import Side
from dllm.kernels.jit import suits
from dllm.kernels.rotary import Rotation, rotate

NOBODY = -2
"""What a row owns that sees all that is stored; -1 is the owner of a column that nobody owns."""


class SideView(View):
    """Another view with side rows behind its own. Their tokens stand behind the canvas, at the columns `first` and on.

    at: where the side rows stand in their text. They do not see the columns whose `owner` is their `own`, but those
    side rows that they are `among`. places: the side rows that predict the last columns of the span to predict.
    """

    def __init__(
        self,
        base: View,
        first: int,
        at: Int[Tensor, "B S"],
        owner: Int[Tensor, "#B {first}"],
        own: Int[Tensor, "B S"],
        among: Bool[Tensor, "B S S"],
        places: Int[Tensor, "B P"],
    ) -> None:
        self.base, self.spec, self.n_rows, self.places = base, base.spec, base.rows.shape[1], places
        self.owner, self.own, self.at = owner, own, at
        reach = base.spec.reach(at)
        self.among = among if reach is None else among & (at[:, None] <= reach[..., None])
        side = first + torch.arange(at.shape[1], device=at.device)
        self.rows = torch.cat([base.rows, side.expand_as(at)], 1)
        self.stand = torch.cat([base.positions, at], 1)

    @property
    def positions(self) -> Int[Tensor, "B QS"]:
        return self.stand

    @cached_property
    def see(self) -> Bool[Tensor, "B 1 S LS"]:
        """Which stored columns, then which side rows, each side row may attend to."""
        stored = self.owner[:, None, None, : self.base.n_keys] != self.own[:, None, :, None]
        exists = self.base.visibility(self.at)
        return torch.cat([stored if exists is None else stored & exists, self.among[:, None]], -1)

    @cached_property
    def apart(self) -> tuple[Bool[Tensor, "B QS S"], Int[Tensor, "B QS"]]:
        """Among which side rows every row is, and what it owns: nothing for those of the other view."""
        return F.pad(self.among, (0, 0, self.n_rows, 0)), F.pad(self.own, (self.n_rows, 0), value=NOBODY)

    def find(self, span: Span) -> Int[Tensor, "B W"]:
        n = span.columns.shape[1] - self.places.shape[1]
        known = self.base.find(Span(span.columns[:, :n].contiguous(), span.valid[:, :n]))
        return torch.cat([known, self.n_rows + self.places], 1)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B QS H D"],
        k: Float[Tensor, "B QS K D"],
        v: Float[Tensor, "B QS K D"],
        by: Rotation,
    ) -> Float[Tensor, "B QS H D"]:
        n = self.n_rows
        if suits(q) and isinstance(self.base, StoredView):
            q, fresh = self.base.write(layer, q, k, v, by, n)
            among, own = self.apart
            return self.base.look(layer, q, self.reach, Side(fresh, v[:, n:], among, self.owner, own))[0]
        q, k = rotate(q, by), rotate(k, by)
        keys, values = self.base.store(layer, k[:, :n], v[:, :n])
        main = attention(q[:, :n], keys, values, self.base.visible)
        keys, values = torch.cat([keys, k[:, n:]], 1), torch.cat([values, v[:, n:]], 1)
        return torch.cat([main, attention(q[:, n:], keys, values, self.see)], 1)


def shadow_view(base: View, span: Span, first: int) -> SideView:
    """A side row for every column of the span: its shadow, the last W columns of a span to predict.

    A shadow stands where the row that predicts its column stands, and sees the other shadows and all columns but its
    own.
    """
    at = base.spec.predictors(span).columns
    column, shadow = (torch.arange(n, device=at.device) for n in (first, at.shape[1]))
    among = span.valid[:, None].expand(-1, len(shadow), -1)
    return SideView(base, first, at, column[None], span.columns, among, shadow.expand_as(at))


def draft_view(base: View, columns: Span, n: int, span: Span, first: int) -> SideView:
    """The `columns` of each row n times more: other drafts of the same text. They predict n more copies of the span.

    A draft sees its own columns, and of what is stored all other columns: those are read once for all drafts.
    """
    owner, width = columns.mask(first).long() - 1, columns.columns.shape[1]  # 0 where drafts have columns of their own
    at = columns.columns.repeat(1, n)  # (B, n * width)
    side = torch.arange(n * width, device=at.device)
    same = side[:, None] // width == side // width  # (S, S)
    among = same & columns.valid.repeat(1, n)[:, None]
    wanted = base.spec.predictors(span).columns.contiguous()
    # Padding repeats the last column, of which the first entry is the valid one.
    place = torch.searchsorted(columns.columns, wanted).clamp_(max=width - 1)
    places = torch.cat([place + draft * width for draft in range(n)], 1)
    return SideView(base, first, at, owner, torch.zeros_like(at), among, places)
