"""The canvas that is denoised: ragged token rows, and columns chosen from them.

Nothing here knows a model, a sampler or a cache. Shape letters: B rows, L columns of the canvas, W columns of a span.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NOISE = -1
"""Stands for the mask's id where there is no mask: an undecided column then holds noise, a token id t written as ~t."""


def undecided(tokens: Int[Tensor, "..."], mask_id: int) -> Bool[Tensor, "..."]:
    """Where tokens are still to be decided: they are the mask, or noise on a canvas without one."""
    return tokens < 0 if mask_id == NOISE else tokens == mask_id


def shown(tokens: Int[Tensor, "..."], mask_id: int) -> Int[Tensor, "..."]:
    """What the model sees of the tokens: their ids, decided or not."""
    return torch.where(tokens < 0, ~tokens, tokens) if mask_id == NOISE else tokens


def highest(k: int | Int[Tensor, " B"], score: Float[Tensor, "B W"], among: Bool[Tensor, "B W"]) -> Bool[Tensor, "B W"]:
    """The k highest scores of each row among these columns; ties go to the lower column."""
    score = score.masked_fill(~among, -torch.inf)
    if isinstance(k, int) and k == 1:
        best = score.argmax(1, keepdim=True)  # the first of equal ones
        return torch.zeros_like(among).scatter_(1, best, True) & among
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(1)
    return (rank < (k if isinstance(k, int) else k[:, None])) & among


@dataclass(frozen=True)
class Span:
    """Columns of every row, ascending but for repeats: a row with fewer than W repeats one; `valid` is False there."""

    columns: Int[Tensor, "B W"]
    valid: Bool[Tensor, "B W"]

    @classmethod
    def between(cls, start: Int[Tensor, " B"], stop: Int[Tensor, " B"], width: int) -> "Span":
        """The columns start[b] .. stop[b] of every row; `width` is the widest row's stop - start, at least 1."""
        columns = start[:, None] + torch.arange(width, device=start.device)
        return cls(columns.minimum(stop[:, None] - 1).clamp_(min=0), columns < stop[:, None])

    @classmethod
    def where(cls, mask: Bool[Tensor, "B L"], width: int) -> "Span":
        """The columns at which `mask` holds; `width` is the largest number of them in a row, at least 1."""
        n_rows, length = mask.shape
        column = torch.arange(length, device=mask.device).expand(n_rows, length)
        last = column.masked_fill(~mask, 0).amax(1, keepdim=True)
        slot = (mask.cumsum(1) - 1).masked_fill(~mask, width)  # one slot too many takes the columns that are not wanted
        columns = last.repeat(1, width + 1).scatter_(1, slot, column)[:, :width].contiguous()
        return cls(columns, torch.arange(width, device=mask.device) < mask.sum(1, keepdim=True))

    def __getitem__(self, rows: Int[Tensor, " R"]) -> "Span":
        return Span(self.columns[rows], self.valid[rows])

    def only(self, keep: Bool[Tensor, "B W"]) -> "Span":
        """The same places, of which those that are not kept repeat the first kept column, as padding does."""
        first = self.columns.gather(1, keep.long().argmax(1, keepdim=True))
        return Span(torch.where(keep, self.columns, first), self.valid & keep)

    def mask(self, length: int) -> Bool[Tensor, "B {length}"]:
        """True at the columns of the span."""
        marks = torch.zeros(len(self.columns), length, dtype=torch.bool, device=self.columns.device)
        return marks.scatter_(1, self.columns, True)


@dataclass
class Canvas:
    """Ragged rows: prompt, then the answer, then nothing. Columns at or after lengths[b] do not exist for row b.

    Only open columns are ever denoised: a mask id that stands elsewhere is a token like any other.
    """

    tokens: Int[Tensor, "B L"]
    open: Bool[Tensor, "B L"]
    """True at the columns that the generation decides."""
    prompt_lengths: Int[Tensor, " B"]
    """The prompt ends where the answer begins; an answer may hold given tokens too."""
    lengths: Int[Tensor, " B"]
    free_from: Int[Tensor, " B"]
    """The column from which on nothing is given; an end of text ends the row only there."""
    mask_id: int
    """`NOISE` where undecided columns hold random tokens instead of a mask."""
    answer_width: int
    """Columns of the longest answer."""

    @property
    def columns(self) -> Int[Tensor, " L"]:
        return torch.arange(self.tokens.shape[1], device=self.tokens.device)

    @property
    def exists(self) -> Bool[Tensor, "B L"]:
        return self.columns < self.lengths[:, None]

    @property
    def free(self) -> Bool[Tensor, "B L"]:
        """True where an end of text may end a row: behind the last given column."""
        return (self.columns >= self.free_from[:, None]) & self.exists

    @property
    def undecided(self) -> Bool[Tensor, "B L"]:
        """True at the open columns that still hold the mask, or noise."""
        return undecided(self.tokens, self.mask_id) & self.open & self.exists

    def read(self, span: Span) -> Int[Tensor, "B W"]:
        return self.tokens.gather(1, span.columns)

    def write(self, rows: Int[Tensor, " B"], span: Span, before: Int[Tensor, "B W"], after: Int[Tensor, "B W"]) -> None:
        """Replace the tokens `before`, which stand at the span of these rows, by `after`."""
        # Adding the difference leaves a column that the span repeats as padding to its one valid entry.
        change = (after - before).masked_fill_(~span.valid, 0)
        self.tokens[rows] = self.tokens[rows].scatter_add_(1, span.columns, change)

    def keep_only(self, rows: Int[Tensor, " R"]) -> None:
        """Only these rows go on, in this order."""
        self.tokens, self.open = self.tokens[rows], self.open[rows]
        self.prompt_lengths, self.lengths = self.prompt_lengths[rows], self.lengths[rows]
        self.free_from = self.free_from[rows]
