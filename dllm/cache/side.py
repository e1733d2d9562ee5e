"""Views with side rows: computed beside those of another view, seen by none of them, and never stored.

Shape letters: B rows of the batch, Q columns of the other view, S side rows, N drafts, L canvas columns, W span,
H heads, K kv heads, D head width.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.cache.base import View, attention, visibility
from dllm.canvas import Span
from dllm.kernels.rotary import Rotation, rotate
from dllm.spec import ModelSpec


class SideView(View):
    """Another view with side rows behind its own. Their tokens stand behind the canvas, at the columns `first` and on.

    at: where the side rows stand in their text. see: which stored columns, then which side rows, each may attend to.
    places: the side rows that predict the last columns of the span to predict.
    """

    def __init__(
        self,
        base: View,
        first: int,
        at: Int[Tensor, "B S"],
        see: Bool[Tensor, "B 1 S LS"],
        places: Int[Tensor, "B P"],
    ) -> None:
        self.base, self.n_rows, self.see, self.places = base, base.rows.shape[1], see, places
        side = first + torch.arange(at.shape[1], device=at.device)
        self.rows = torch.cat([base.rows, side.expand_as(at)], 1)
        self.stand = torch.cat([base.positions, at], 1)

    @property
    def positions(self) -> Int[Tensor, "B QS"]:
        return self.stand

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
        q, k = rotate(q, by), rotate(k, by)
        n = self.n_rows
        keys, values = self.base.store(layer, k[:, :n], v[:, :n])
        main = attention(q[:, :n], keys, values, self.base.visible)
        keys, values = torch.cat([keys, k[:, n:]], 1), torch.cat([values, v[:, n:]], 1)
        return torch.cat([main, attention(q[:, n:], keys, values, self.see)], 1)


def shadow_view(base: View, spec: ModelSpec, span: Span, lengths: list[int], first: int) -> SideView:
    """A side row for every column of the span: its shadow, the last W columns of a span to predict.

    A shadow stands where the row that predicts its column stands, and sees the other shadows and all columns but its
    own.
    """
    at = spec.predictors(span).columns
    column, shadow = (torch.arange(n, device=at.device) for n in (max(lengths), at.shape[1]))
    seen, exists = span.columns[:, None, :, None] != column, visibility(spec, at, lengths)  # (B, 1, W, L)
    among, reach = span.valid[:, None, None, :].expand(-1, 1, len(shadow), -1), spec.reach(at)
    if reach is not None:
        among = among & (at[:, None, None, :] <= reach[:, None, :, None])
    see = torch.cat([seen if exists is None else seen & exists, among], -1)
    return SideView(base, first, at, see, shadow.expand_as(at))


def draft_view(
    base: View, spec: ModelSpec, columns: Span, n: int, span: Span, lengths: list[int], first: int
) -> SideView:
    """The `columns` of each row n times more: other drafts of the same text. They predict n more copies of the span.

    A draft sees its own columns, and of what is stored all other columns: those are read once for all drafts.
    """
    own, width = columns.mask(max(lengths)), columns.columns.shape[1]
    at = columns.columns.repeat(1, n)  # (B, n * width)
    side = torch.arange(n * width, device=at.device)
    shared, exists = ~own[:, None, None, :], visibility(spec, at, lengths)
    shared = shared if exists is None else shared & exists
    same = side[:, None] // width == side // width  # (S, S)
    among, reach = same & columns.valid.repeat(1, n)[:, None, None, :], spec.reach(at)
    if reach is not None:
        among = among & (at[:, None, None, :] <= reach[:, None, :, None])
    see = torch.cat([shared.expand(-1, -1, n * width, -1), among], -1)
    wanted = spec.predictors(span).columns.contiguous()
    # Padding repeats the last column, of which the first entry is the valid one.
    place = torch.searchsorted(columns.columns, wanted).clamp_(max=width - 1)
    places = torch.cat([place + draft * width for draft in range(n)], 1)
    return SideView(base, first, at, see, places)
