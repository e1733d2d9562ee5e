"""What the next forwards compute: a plan of all rows in flight, and batches of those that run together."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from dllm import transfer
from dllm.canvas import Span


@dataclass(frozen=True)
class Plan:
    """What each row in flight computes next. The lists have an entry for every row."""

    scope: Span
    """What is predicted for the sampler."""
    place: Int[Tensor, "R W"]
    """Where its columns stand in what the sampler wanted, of which a cache may leave some out; `wanted` at padding."""
    wanted: int
    """How many columns the sampler wanted."""
    window: Span
    columns: Bool[Tensor, "R L"]
    counts: list[int]
    """How many columns of each row are computed."""
    lengths: list[int]
    """How many columns each row has."""
    ends: list[int]
    """How many of them, from the first on, its forward may attend to."""
    starts: list[int]
    """Where each row's block begins."""
    undecided: list[int]
    """Masks that each row has left."""
    to_the_end: list[int]
    """1 where all from the block on is computed, and an end of text may be seen there (eotp)."""
    widths: list[int]
    """How many columns the scope of each row has."""
    drafts: list[int]
    """How many drafts of each row are computed, the canvas itself included."""
    n_drafts: Int[Tensor, " R"]
    """The same on the device."""
    step_columns: Bool[Tensor, "R L"]
    """The columns of a step that is no refresh, which every draft but the canvas computes."""
    step_counts: list[int]
    """How many these are."""
    attended: list[int] | None = None
    """Pairs of a query and a key in each row's forward, and those of a draft; None where each column meets all."""
    step_attended: list[int] | None = None

    def work(self, row: int) -> int:
        """The columns of a row that are computed, all drafts together."""
        return self.counts[row] + (self.drafts[row] - 1) * self.step_counts[row]

    def pairs(self, row: int) -> int:
        """The pairs of a query and a key that attention compares for a row in one layer, all drafts together."""
        if self.attended is None or self.step_attended is None:
            return self.work(row) * self.lengths[row]
        return self.attended[row] + (self.drafts[row] - 1) * self.step_attended[row]

    def predicted(self, row: int) -> int:
        """The columns of a draft of the row that go through the head."""
        return self.lengths[row] - self.starts[row] if self.to_the_end[row] else self.widths[row]

    def batch(
        self,
        rows: list[int],
        index: Int[Tensor, " B"],
        drafts: Int[Tensor, "B N L"],
        stop: Int[Tensor, " B"],
        whole: bool,
    ) -> "Batch":
        """The forward of some rows. index: the same on the device. stop: where each ends. whole: predict all columns.

        A row that computes all to its end anyway is predicted to its end, if an end of text may cut it short.
        """
        scope, place = self.scope[index], None
        span = scope
        if whole:
            span, place = (
                Span.between(torch.zeros_like(index), stop, max(self.lengths[row] for row in rows)),
                scope.columns,
            )
        elif any(self.to_the_end[row] for row in rows):
            n = scope.columns.shape[1]
            width = max(n, *(self.lengths[row] - self.starts[row] for row in rows if self.to_the_end[row]))
            told = transfer.put([[self.to_the_end[row], self.starts[row]] for row in rows], index.device)
            far, begin = told[:, :1] > 0, told[:, 1]
            column, ahead = torch.arange(width, device=index.device), Span.between(begin, stop, width)
            near = Span(scope.columns[:, column.clamp(max=n - 1)], F.pad(scope.valid, (0, width - n)))
            span = Span(torch.where(far, ahead.columns, near.columns), torch.where(far, ahead.valid, near.valid))
            place = torch.where(far, scope.columns - begin[:, None], column[:n])
        return Batch(self, rows, index, drafts, scope, span, place)


@dataclass(frozen=True)
class Batch:
    """The rows in flight that one forward computes together."""

    plan: Plan
    rows: list[int]
    index: Int[Tensor, " B"]
    """The rows, on the device."""
    drafts: Int[Tensor, "B N L"]
    """The canvas of each row, and behind it its drafts; those that a row does not have hold anything."""
    scope: Span
    span: Span
    """What is predicted: the scope, or more."""
    place: Int[Tensor, "B W"] | None
    """Where the scope's columns stand in the span, if that is more."""

    @property
    def n(self) -> int:
        """Drafts of a row, the canvas itself included."""
        return self.drafts.shape[1]

    @property
    def counts(self) -> list[int]:
        return [self.plan.counts[row] for row in self.rows]

    @property
    def lengths(self) -> list[int]:
        return [self.plan.lengths[row] for row in self.rows]

    @property
    def ends(self) -> list[int]:
        return [self.plan.ends[row] for row in self.rows]
