"""What the next forwards compute."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from dllm.canvas import Span


@dataclass(frozen=True)
class Plan:
    """What the next forwards compute, of all rows in flight. The lists have an entry for every row."""

    block: Span
    scope: Span
    """What is predicted for the sampler."""
    window: Span
    columns: Bool[Tensor, "R L"]
    counts: list[int]
    """How many columns of each row."""
    lengths: list[int]
    """How many columns each row has."""
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
    drafted: Int[Tensor, " R"]
    """The same on the device."""
    again: Bool[Tensor, "R L"]
    """The columns that a further draft of each row computes."""
    again_counts: list[int]
    """How many these are."""

    place: Int[Tensor, "R W"]
    """Where the scope's columns stand in what the sampler wanted, of which a cache may have left some out; `wanted` at
    padding."""
    wanted: int
    """How many columns the sampler wanted."""

    @property
    def refreshed(self) -> bool:
        """Whether a row computes more than a step of its block must."""
        return any(count != again for count, again in zip(self.counts, self.again_counts, strict=True))

    def work(self, row: int) -> int:
        """The columns of a row that are computed, all drafts together."""
        return self.counts[row] + (self.drafts[row] - 1) * self.again_counts[row]

    def span(
        self, rows: list[int], index: Int[Tensor, " B"], stop: Int[Tensor, " B"], whole: bool
    ) -> tuple[Span, Int[Tensor, "B W"] | None]:
        """The columns to predict in some rows, and where the scope's stand among them if these are more.

        A row that computes all to its end anyway is predicted to its end, if an end of text may cut it short. rows: on
        the host, index: the same on the device. stop: where each of them ends. whole: predict all columns.
        """
        scope = self.scope[index]
        if whole:
            return Span.between(torch.zeros_like(index), stop, max(self.lengths[row] for row in rows)), scope.columns
        if not any(self.to_the_end[row] for row in rows):
            return scope, None
        n = scope.columns.shape[1]
        width = max(n, *(self.lengths[row] - self.starts[row] for row in rows if self.to_the_end[row]))
        far = torch.tensor([[bool(self.to_the_end[row])] for row in rows], device=index.device)
        place = torch.arange(width, device=index.device)
        near = Span(scope.columns[:, place.clamp(max=n - 1)], F.pad(scope.valid, (0, width - n)))
        ahead = Span.between(self.block.columns[index, 0], stop, width)
        span = Span(torch.where(far, ahead.columns, near.columns), torch.where(far, ahead.valid, near.valid))
        return span, torch.where(far, scope.columns - ahead.columns[:, :1], place[:n])
