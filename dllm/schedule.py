"""The rows in flight: where each stands, which of them run together, and who takes a finished one's place."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dllm.canvas import Canvas, Span
from dllm.generation import Request
from dllm.settings import Settings
from dllm.spec import ModelSpec


def together(counts: Sequence[int]) -> list[list[int]]:
    """Group rows that compute similar numbers of columns, the largest first.

    A refresh computes a whole canvas and a window step a few columns; in one forward the latter would be padded to the
    former. A row joins a group if it fills at least half of the group's width. Returns positions in `counts`, ascending
    within a group.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(counts)), key=lambda r: -counts[r]):
        if groups and 2 * counts[row] >= counts[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [sorted(group) for group in groups]


@dataclass
class Rows:
    """One entry for every row in flight; a row's answer is decoded block by block."""

    key: Int[Tensor, " R"]
    """The request's name for its noise."""
    step: Int[Tensor, " R"]
    """Steps taken."""
    block_start: Int[Tensor, " R"]
    """First column of the present block; -1 before the first step."""
    block_step: Int[Tensor, " R"]
    """Steps taken in the present block."""
    block_steps: Int[Tensor, " R"]
    """The present block's share of `steps`."""
    block_masked: Int[Tensor, " R"]
    """Masked columns that the present block began with."""
    broken: Bool[Tensor, " R"]
    """True once the model has returned NaN for the row."""

    @classmethod
    def empty(cls, n_rows: int, device: torch.device) -> "Rows":
        zeros = torch.zeros(n_rows, dtype=torch.long, device=device)
        return cls(zeros, zeros.clone(), zeros - 1, zeros.clone(), zeros + 1, zeros.clone(), zeros.bool())

    def __getitem__(self, index: Int[Tensor, " B"]) -> "Rows":
        return Rows(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True)
class Position:
    """Where the rows in flight stand before a step."""

    block: Span
    """The block of every row: the one that holds its first mask."""
    entered: Bool[Tensor, " R"]
    """Rows for which it is a new one."""
    masked: Int[Tensor, " R"]
    """Masked columns in it."""
    undecided: Int[Tensor, " R"]
    """Masked columns in the row."""
    done: Bool[Tensor, " R"]
    """Rows with nothing left to decide."""


class Schedule:
    """Puts requests into the canvas, `batch_size` at a time, and takes finished rows out."""

    def __init__(self, requests: Sequence[Request], settings: Settings, spec: ModelSpec, device: torch.device) -> None:
        self.requests, self.settings, self.device = list(requests), settings, device
        self.waiting = deque(range(len(requests)))
        self.finished: dict[int, list[int]] = {}
        self.eos_ids = frozenset(spec.eos_ids)
        self.eos = torch.tensor(spec.eos_ids, dtype=torch.long, device=device)
        self.fill = spec.eos_ids[0] if spec.eos_ids else 0
        n_rows = min(len(requests), settings.batch_size)
        length = max(len(r.prompt) for r in requests) + settings.gen_length
        tokens = torch.full((n_rows, length), self.fill, device=device)
        nothing = torch.zeros(n_rows, dtype=torch.long, device=device)
        self.canvas = Canvas(tokens, nothing, nothing.clone(), settings.mask(spec))
        self.rows = Rows.empty(n_rows, device)
        self.slots = [-1] * n_rows
        """The request that each row works on."""
        self.undecided = [0] * n_rows
        """How many masks each row had left when it was last looked at; every step must bring it down."""
        for slot in range(n_rows):
            self.admit(slot)

    def admit(self, slot: int) -> None:
        """Give a row to the next waiting prompt."""
        index, canvas, rows = self.waiting.popleft(), self.canvas, self.rows
        request, gen_length = self.requests[index], self.settings.gen_length
        n = len(request.prompt)
        canvas.tokens[slot] = self.fill
        canvas.tokens[slot, :n] = torch.tensor(request.prompt, device=self.device)
        canvas.tokens[slot, n : n + gen_length] = canvas.mask_id
        canvas.prompt_lengths[slot], canvas.lengths[slot] = n, n + gen_length
        rows.key[slot], rows.step[slot], rows.block_start[slot] = request.key, 0, -1
        self.slots[slot], self.undecided[slot] = index, gen_length + 1

    def position(self) -> Position:
        """Find every row's block, and whether it is done: nothing masked, or nothing before an end of text."""
        canvas, settings = self.canvas, self.settings
        undecided, beyond = canvas.undecided, canvas.tokens.shape[1]
        first = torch.where(undecided, canvas.columns, beyond).amin(1)
        done = first == beyond
        if settings.eos_early_stop and len(self.eos):
            ended = canvas.answer & torch.isin(canvas.tokens, self.eos)
            done = done | (torch.where(ended, canvas.columns, beyond).amin(1) < first)
        start = canvas.prompt_lengths + (first - canvas.prompt_lengths) // settings.block_length * settings.block_length
        stop = (start + settings.block_length).minimum(canvas.lengths)
        block = Span.between(start, stop, min(settings.block_length, settings.gen_length))
        masked = ((canvas.read(block) == canvas.mask_id) & block.valid).sum(1)
        return Position(block, start != self.rows.block_start, masked, undecided.sum(1), done)

    def enter(self, at: Position) -> None:
        """Note the blocks that rows have come to, each with its share of `steps` by columns, at least one."""
        rows, steps, total = self.rows, self.settings.steps or self.settings.gen_length, self.settings.gen_length
        rows.block_start = at.block.columns[:, 0]
        begin = rows.block_start - self.canvas.prompt_lengths
        end = begin + at.block.valid.sum(1)
        rows.block_steps = (end * steps // total - begin * steps // total).clamp(min=1)
        rows.block_step = rows.block_step.masked_fill(at.entered, 0)
        rows.block_masked = torch.where(at.entered, at.masked, rows.block_masked)

    def release(self, done: Sequence[int]) -> tuple[list[int], Int[Tensor, " R"] | None]:
        """Record finished rows. Returns the rows that new prompts took, and who stays if some are gone for good."""
        taken, gone = [], set()
        for slot in done:
            prompt = len(self.requests[self.slots[slot]].prompt)
            answer = self.canvas.tokens[slot, prompt : prompt + self.settings.gen_length].tolist()
            self.finished[self.slots[slot]] = self.filled(answer)
            if self.waiting:
                self.admit(slot)
                taken.append(slot)
            else:
                gone.add(slot)
        if not gone:
            return taken, None
        left = [slot for slot in range(len(self.slots)) if slot not in gone]
        keep = torch.tensor(left, dtype=torch.long, device=self.device)
        canvas = self.canvas
        canvas.tokens, canvas.lengths = canvas.tokens[keep], canvas.lengths[keep]
        canvas.prompt_lengths, self.rows = canvas.prompt_lengths[keep], self.rows[keep]
        self.slots, self.undecided = [self.slots[s] for s in left], [self.undecided[s] for s in left]
        return taken, keep

    def filled(self, answer: list[int]) -> list[int]:
        """The answer with all that follows its end of text replaced by it, if the row was allowed to stop there."""
        ends = [i for i, token in enumerate(answer) if token in self.eos_ids]
        if not self.settings.eos_early_stop or not ends:
            return answer
        return answer[: ends[0] + 1] + [self.fill] * (len(answer) - ends[0] - 1)
