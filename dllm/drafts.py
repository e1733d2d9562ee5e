"""Draft and verify: compute the next steps together with this one, and keep those that come true.

What a step was decided on also says something about the steps after it: asked again, from further along, the sampler
drafts them. The next forward computes the canvas and its drafts side by side. What the sampler then chooses for the
canvas is what it would have chosen without drafts; where a draft shows the same tokens, its own prediction is that of
the next step, which so needs no forward. Tokens are those of decoding without drafts, whatever the drafts are worth, up
to the rounding of wider forwards (FreeDave, arXiv:2510.00294).

Shape letters: R rows in flight, B rows of one forward, N drafts, L canvas columns, W columns of the span.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm import transfer
from dllm.canvas import Canvas, undecided
from dllm.samplers.base import Prediction, Sampler
from dllm.schedule import Rows


class Drafts:
    """The drafts of the rows in flight. Draft 0 is the canvas itself and is not kept here."""

    def __init__(self, canvas: Canvas, most: int) -> None:
        self.tokens = canvas.tokens[:, None].repeat(1, most - 1, 1)
        """(R, N - 1, L)"""
        self.beyond = torch.zeros_like(self.tokens[..., 0], dtype=torch.bool)
        """Drafts that stand in the next block already. (R, N - 1)"""
        self.count = torch.ones_like(canvas.lengths)
        """How many drafts each row has, the canvas included. (R,)"""

    def canvases(self, canvas: Canvas, index: Int[Tensor, " B"], n: int) -> Int[Tensor, "B {n} L"]:
        """The canvas and the drafts of some rows; those that a row does not have hold anything."""
        now = canvas.tokens[index][:, None]
        return now if n == 1 else torch.cat([now, self.tokens[index, : n - 1]], 1)

    def make(
        self,
        sampler: Sampler,
        p: Prediction,
        current: Int[Tensor, "B W"],
        rows: Rows,
        canvas: Canvas,
        index: Int[Tensor, " B"],
        n: int,
    ) -> None:
        """Draft the next steps of some rows, from the prediction that they were last decided on.

        current: what stands in its span now. rows: their counters now. A draft that leaves nothing to reveal in the
        block is one only if the next block is known, and predicted.
        """
        now, first, start = canvas.tokens[index], current, rows.block_start
        count, alive = torch.ones_like(index), index >= 0
        for i in range(n - 1):
            p = seen_by(p, current, rows)
            current = sampler(p)
            left = (undecided(current, p.mask_id) & p.masked).any(1)
            begin, rows = rows.block_start, rows.ahead(1).into_next(~left)
            alive &= left | (rows.block_start != begin)
            count += alive
            if transfer.near(index.device) and not alive.any():
                break
            change = (current - first).masked_fill(~p.span.valid, 0)  # see Canvas.write
            self.tokens[index, i] = now.scatter_add(1, p.span.columns, change)
            self.beyond[index, i] = rows.block_start != start
        self.count[index] = count

    def forget(self, slot: int) -> None:
        """Another prompt has taken the row."""
        transfer.write(self.count, slot, 1)

    def keep_only(self, rows: Int[Tensor, " R"]) -> None:
        """Only these rows go on, in this order."""
        self.tokens, self.beyond, self.count = self.tokens[rows], self.beyond[rows], self.count[rows]


def seen_by(p: Prediction, current: Int[Tensor, "B W"], rows: Rows) -> Prediction:
    """The prediction at these tokens and these counters."""
    counters = {name: getattr(rows, name) for name in ("step", "block_step", "block_steps", "quota")}
    return p.seen_from(current, block=rows.in_block(p.span.columns), **counters)


def follow(
    drafts: Int[Tensor, "B N W"],
    after: Int[Tensor, "B W"],
    at: Int[Tensor, " B"],
    n_drafts: Int[Tensor, " B"],
    p: Prediction,
    subset: bool,
) -> Int[Tensor, " B"]:
    """The draft that comes true when the rows, which stand at the drafts `at`, go on to `after`; -1 where none does.

    Only the first `n_drafts` count. The draft shows the same tokens, or with `subset` some of them and else masks; of
    several, it is the last.
    """
    same = (drafts == after[:, None]) | ~p.span.valid[:, None]
    if subset:
        same |= undecided(drafts, p.mask_id) & p.open[:, None]
    number = torch.arange(drafts.shape[1], device=at.device)
    found = same.all(-1) & (number < n_drafts[:, None]) & (number > at[:, None])
    return torch.where(found, number, -1).amax(1)


@dataclass(frozen=True)
class Decision:
    """What becomes of the rows of a forward, several steps at once where drafts came true."""

    p: Prediction
    """What the last of the steps was decided on."""
    before: Int[Tensor, "B W"]
    after: Int[Tensor, "B W"]
    lengths: Int[Tensor, " B"]
    """How long the rows are then."""
    ended: Bool[Tensor, " B"]
    """Rows in which a predicted end of text was written."""
    confidence: Float[Tensor, "B W"]
    """Of every revealed token, when it was."""
    rows: Rows
    """The counters at the last of the steps."""
    broken: Bool[Tensor, " B"]
    """Rows whose predictions hold NaN."""


def decide(
    read: Callable[[Int[Tensor, " B"], Rows], Prediction],
    choose: Callable[[Prediction], tuple[Tensor, Tensor, Tensor]],
    drafts: Int[Tensor, "B N W"],
    rows: Rows,
    n_drafts: Int[Tensor, " B"],
    beyond: Bool[Tensor, "B _"],
    subset: bool,
) -> Decision:
    """What is chosen; and while a draft shows just that, what is chosen next, from that draft on.

    read: the prediction of one draft of every row, at these counters. choose: the next tokens of its span, how long the
    rows are then, and which of them ended at a predicted end of text. drafts: what stands in the span, of which
    `n_drafts` count. beyond: which of those behind the canvas stand in the next block. subset: as of `follow`.
    """
    at = torch.zeros_like(n_drafts)
    p = read(at, rows)
    after, lengths, ended = choose(p)
    before, confidence, broken = p.current, p.confidence, p.broken
    for _ in range(drafts.shape[1] - 1):
        true = follow(drafts, after, at, n_drafts, p, subset)
        came_true = (true >= 0) & ~ended  # no draft knows of a predicted end of text
        if transfer.near(at.device) and not came_true.any():
            break
        at = torch.where(came_true, true, at)
        crossed = (at > 0) & beyond.gather(1, (at - 1).clamp(min=0)[:, None])[:, 0]
        rows = rows.ahead(came_true.long()).into_next(crossed)
        p = read(at, rows)
        after, lengths, ended = choose(p)
        confidence = torch.where(after == p.current, confidence, p.confidence)
        broken = broken | p.broken
    return Decision(p, before, after, lengths, ended, confidence, rows, broken)
