"""The rows in flight: where each stands, which of them run together, and who takes a finished one's place."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dllm import transfer
from dllm.canvas import NOISE, Canvas, Span, undecided
from dllm.generation import Request
from dllm.noise import Key
from dllm.samplers.base import Sampler
from dllm.settings import Settings
from dllm.spec import ModelSpec

MOST = 1 << 17
"""Columns of one forward, padding included. Besides weights and store LLaDA-8B takes 14 GiB for so many in bfloat16;
more would not run faster."""


def together(counts: Sequence[int], most: int = MOST) -> list[list[int]]:
    """Group rows that compute similar numbers of columns, the largest first.

    A refresh computes a whole canvas and a window step a few columns; in one forward the latter would be padded to the
    former. A row joins a group if it fills at least half of the group's width, and if that has no more than `most`
    columns then. Returns positions in `counts`, ascending within a group.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(counts)), key=lambda r: -counts[r]):
        width = counts[groups[-1][0]] if groups else 0
        if groups and 2 * counts[row] >= width and (len(groups[-1]) + 1) * width <= most:
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
    steps: Int[Tensor, " R"]
    """Steps that a schedule spreads over the answer."""
    block_start: Int[Tensor, " R"]
    """First column of the present block; -1 before the first step."""
    block_step: Int[Tensor, " R"]
    """Steps taken in the present block."""
    block_steps: Int[Tensor, " R"]
    """The present block's share of `steps`."""
    quotas: Int[Tensor, "R T"]
    """How many tokens a schedule reveals in each step of the present block; 1 after its last."""
    block_stop: Int[Tensor, " R"]
    """Where the present block ends, if the answer does not end before."""
    next_stop: Int[Tensor, " R"]
    """The same of the next block."""
    next_steps: Int[Tensor, " R"]
    """The next block's share of `steps`; 0 where it is not known, or there is none."""
    next_quotas: Int[Tensor, "R T"]
    broken: Bool[Tensor, " R"]
    """True once the model has returned NaN for the row."""

    @classmethod
    def empty(cls, n_rows: int, width: int, device: torch.device) -> "Rows":
        """Rows whose answers have at most `width` columns."""
        zeros = torch.zeros(n_rows, dtype=torch.long, device=device)
        ones = torch.ones(n_rows, width + 1, dtype=torch.long, device=device)
        counters = (zeros, zeros.clone(), zeros + 1, zeros - 1, zeros.clone(), zeros + 1, ones)
        return cls(*counters, zeros.clone(), zeros.clone(), zeros.clone(), ones.clone(), zeros.bool())

    def ahead(self, steps: int | Int[Tensor, " R"]) -> "Rows":
        """The same rows so many steps further along in their blocks."""
        return replace(self, step=self.step + steps, block_step=self.block_step + steps)

    def into_next(self, where: Bool[Tensor, " R"]) -> "Rows":
        """The same rows, some of them at the beginning of their next block, where that is known."""
        where = where & (self.next_steps > 0)
        return replace(
            self,
            block_start=torch.where(where, self.block_stop, self.block_start),
            block_stop=torch.where(where, self.next_stop, self.block_stop),
            block_step=self.block_step.masked_fill(where, 0),
            block_steps=torch.where(where, self.next_steps, self.block_steps),
            quotas=torch.where(where[:, None], self.next_quotas, self.quotas),
            next_steps=self.next_steps.masked_fill(where, 0),
        )

    def in_block(self, columns: Int[Tensor, "R W"]) -> Bool[Tensor, "R W"]:
        """True at the columns of the present block."""
        return (columns >= self.block_start[:, None]) & (columns < self.block_stop[:, None])

    def put(self, index: Int[Tensor, " B"], rows: "Rows") -> None:
        """Put other counters in the place of some rows'."""
        for f in fields(self):
            if f.name != "broken":
                getattr(self, f.name)[index] = getattr(rows, f.name)

    @property
    def quota(self) -> Int[Tensor, " R"]:
        """How many tokens a schedule reveals now."""
        return self.quotas.gather(1, self.block_step.clamp(max=self.quotas.shape[1] - 1)[:, None])[:, 0]

    def __getitem__(self, index: Int[Tensor, " B"]) -> "Rows":
        return Rows(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True)
class Position:
    """Where the rows in flight stand before a step."""

    block: Span
    """The block of every row: the one that holds its first mask."""
    entered: Bool[Tensor, " R"]
    """Rows for which it is a new one."""
    first: Int[Tensor, " R"]
    """The first masked column of the row; beyond all columns where nothing is masked."""
    masked: Int[Tensor, " R"]
    """Masked columns in the block."""
    undecided: Int[Tensor, " R"]
    """Masked columns in the row."""
    done: Bool[Tensor, " R"]
    """Rows with nothing left to decide."""
    two_blocks: Span
    """With `eager`, the block and the one behind it."""
    behind: Int[Tensor, " R"]
    """With `eager`, masked columns in the latter."""


class Schedule:
    """Puts requests into the canvas, `batch_size` at a time, and takes finished rows out."""

    def __init__(
        self, requests: Sequence[Request], settings: Settings, spec: ModelSpec, sampler: Sampler, device: torch.device
    ) -> None:
        self.requests, self.settings, self.sampler, self.device = list(requests), settings, sampler, device
        self.waiting = deque(range(len(requests)))
        self.finished: dict[int, list[int]] = {}
        self.eos_ids = frozenset(spec.eos_ids)
        self.eos = torch.tensor(spec.eos_ids, dtype=torch.long, device=device)
        self.fill = spec.eos_ids[0] if spec.eos_ids else 0
        n_rows = min(len(requests), settings.batch_size)
        width = max(len(r.answer) for r in requests)
        self.in_model_blocks = spec.attention == "block"
        """Blocks are counted from column 0, as the model's are, and not from the end of the prompt."""
        self.block_length = sampler.block_length(settings.block_length or spec.block_length or None, width)
        tokens = torch.full((n_rows, max(r.length for r in requests)), self.fill, device=device)
        nothing = torch.zeros(n_rows, dtype=torch.long, device=device)
        self.canvas = Canvas(tokens, tokens < 0, nothing, nothing.clone(), nothing.clone(), settings.blank(spec), width)
        self.vocab_size = spec.vocab_size
        self.rows = Rows.empty(n_rows, width, device)
        self.slots = [-1] * n_rows
        """The request that each row works on."""
        self.known = [(-1, 0)] * n_rows
        """The block of each row and the masks behind it for which its next block is planned."""
        self.budget = [0] * n_rows
        """How many masks each row may have left when it is looked at next; every step must bring it down."""
        for slot in range(n_rows):
            self.admit(slot)

    def admit(self, slot: int) -> None:
        """Give a row to the next waiting prompt."""
        index, canvas, rows = self.waiting.popleft(), self.canvas, self.rows
        request = self.requests[index]
        n = len(request.prompt)
        canvas.tokens[slot], canvas.open[slot] = self.fill, False
        canvas.tokens[slot, : request.length] = transfer.put([*request.prompt, *request.answer], self.device)
        canvas.open[slot, n : request.length] = undecided(canvas.tokens[slot, n : request.length], canvas.mask_id)
        self.write(slot, prompt_lengths=n, lengths=request.length, free_from=n + request.free(canvas.mask_id))
        self.write(slot, key=request.key, step=0, block_start=-1)
        if canvas.mask_id == NOISE:
            key = Key(self.settings.noise_seed, rows.key[slot : slot + 1])
            noise = ~key.tokens(canvas.columns[None], self.vocab_size)[0]
            canvas.tokens[slot] = torch.where(canvas.open[slot], noise, canvas.tokens[slot])
        self.write(slot, steps=self.settings.steps or len(request.answer), next_steps=0)
        self.known[slot], self.slots[slot], self.budget[slot] = (-1, 0), index, len(request.answer)

    def write(self, slot: int, **numbers: int) -> None:
        """Give these fields of a row of the canvas, or counters of it, new values."""
        for name, number in numbers.items():
            transfer.write(getattr(self.rows if hasattr(self.rows, name) else self.canvas, name), slot, number)

    def position(self) -> Position:
        """Find every row's block, and whether it is done: nothing masked, or nothing before an end of text."""
        canvas, block_length = self.canvas, self.block_length
        wanting, beyond = canvas.undecided, canvas.tokens.shape[1]
        first = torch.where(wanting, canvas.columns, beyond).amin(1)
        done = first == beyond
        origin = torch.zeros_like(first) if self.in_model_blocks else canvas.prompt_lengths
        border = origin + (first - origin) // block_length * block_length
        start = border.maximum(canvas.prompt_lengths)  # a block of the model may begin in the prompt
        if self.settings.eos_early_stop and len(self.eos):
            ended = canvas.free & torch.isin(canvas.tokens, self.eos)
            # What may be masked again is not decided before its block is.
            decided = start if self.sampler.needs().revoking else first
            done = done | (torch.where(ended, canvas.columns, beyond).amin(1) < decided)
        stop = (border + block_length).minimum(canvas.lengths)
        block = Span.between(start, stop, min(block_length, canvas.answer_width))
        masked = (undecided(canvas.read(block), canvas.mask_id) & block.valid).sum(1)
        at = Position(block, start != self.rows.block_start, first, masked, wanting.sum(1), done, block, masked)
        if not self.settings.eager:
            return at
        end = (border + 2 * block_length).minimum(canvas.lengths)
        two_blocks = Span.between(start, end, min(2 * block_length, canvas.answer_width))
        both = (wanting & (canvas.columns < end[:, None]) & (canvas.columns >= start[:, None])).sum(1)
        return replace(at, two_blocks=two_blocks, behind=both - masked)

    def stop(self, slot: int, start: int) -> int:
        """Where the block ends that begins at column `start`, if the answer does not end before."""
        origin = 0 if self.in_model_blocks else len(self.requests[self.slots[slot]].prompt)
        return start + self.block_length - (start - origin) % self.block_length

    def enter(self, slot: int, start: int, masked: int) -> None:
        """A row has come to the block at column `start`."""
        share = self.plan(slot, start, masked, self.rows.quotas)
        self.write(slot, block_start=start, block_stop=self.stop(slot, start), block_step=0)
        self.write(slot, block_steps=share, next_steps=0)

    def foresee(self, slot: int, start: int, masked: int) -> None:
        """What comes behind the block at column `start`: another one, with so many masks, if any."""
        if self.known[slot] == (start, masked):
            return
        self.known[slot], share = (start, masked), 0
        if masked:
            begin = self.stop(slot, start)
            self.write(slot, next_stop=self.stop(slot, begin))
            share = self.plan(slot, begin, masked, self.rows.next_quotas)
        self.write(slot, next_steps=share)

    def plan(self, slot: int, start: int, masked: int, quotas: Int[Tensor, "R T"]) -> int:
        """A block's share of the steps by columns, at least one, and the quota of each of them."""
        request = self.requests[self.slots[slot]]
        total = len(request.answer)
        steps, begin = self.settings.steps or total, start - len(request.prompt)
        end = min(self.stop(slot, start) - len(request.prompt), total)
        share = max(1, end * steps // total - begin * steps // total)
        found = self.sampler.quotas(masked, share)
        quotas[slot] = 1
        quotas[slot, : len(found)] = transfer.put(found, self.device)
        return share

    def release(self, done: Sequence[int]) -> tuple[list[int], Int[Tensor, " R"] | None]:
        """Record finished rows. Returns the rows that new prompts took, and who stays if some are gone for good."""
        taken, gone = [], set()
        tokens = torch.where(self.canvas.exists, self.canvas.tokens, self.fill)  # an end of text may have cut the row
        for slot in done:
            request = self.requests[self.slots[slot]]
            answer = tokens[slot, len(request.prompt) : request.length].tolist()
            self.finished[self.slots[slot]] = self.filled(request, answer)
            if self.waiting:
                self.admit(slot)
                taken.append(slot)
            else:
                gone.add(slot)
        if not gone:
            return taken, None
        # The last rows move into the gaps, so that few rows of a store are copied.
        n, moving = len(self.slots) - len(gone), [slot for slot in range(len(self.slots)) if slot not in gone]
        left = [moving.pop() if slot in gone else slot for slot in range(n)]
        keep = transfer.put(left, self.device)
        self.canvas.keep_only(keep)
        self.rows = self.rows[keep]
        self.slots, self.budget = [self.slots[s] for s in left], [self.budget[s] for s in left]
        self.known = [self.known[s] for s in left]
        return taken, keep

    def filled(self, request: Request, answer: list[int]) -> list[int]:
        """The answer with all that follows its end of text replaced by it, if the row was allowed to stop there."""
        if not self.settings.eos_early_stop:
            return answer
        end = request.end(answer, self.canvas.mask_id, self.eos_ids)
        return answer[: end + 1] + [self.fill] * (len(answer) - end - 1)
