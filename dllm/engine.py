"""The one decoding loop: predict, let the sampler choose, commit, until nothing is masked.

`Run.predict` is the only place that runs the model and counts forwards; `Run.commit` the only one that writes what a
sampler chose. Rows do not wait for each other: each has its own block, finishes on its own, and gives its place to a
waiting prompt.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.cache.base import Cache, ShadowView, View
from dllm.canvas import Span
from dllm.errors import DllmError
from dllm.generation import Generation, Request
from dllm.hooks import Hooks
from dllm.noise import Key
from dllm.propose import Proposer
from dllm.samplers.base import Memory, Prediction, Recall, Sampler
from dllm.schedule import Position, Schedule, together
from dllm.settings import Settings
from dllm.spec import Model
from dllm.trace import Observer, Step

PATIENCE = 10
"""Forwards for every column of an answer, after which a hook that masks again is taken to do so for ever."""


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
    place: Int[Tensor, "R W"]
    """Where they stand in what the sampler wanted, of which a cache may have left some out; `wanted` at padding."""
    wanted: int
    """How many columns the sampler wanted."""


class Run:
    """One generation in progress: iterate to take steps, then ask for the result."""

    def __init__(
        self,
        model: Model,
        requests: Sequence[Request],
        sampler: Sampler,
        cache: Cache,
        settings: Settings,
        observers: Sequence[Observer] = (),
        hooks: Hooks | None = None,
    ) -> None:
        self.model, self.spec, self.sampler, self.cache = model, model.spec, sampler, cache
        self.settings, self.observers, self.hooks = settings, observers, hooks
        self.began = time.perf_counter()
        self.seconds, self.forward_seconds, self.forwards = 0.0, 0.0, 0
        self.begun: set[int] = set()
        """Requests that a hook has seen before their first step."""
        self.counts = {name: [0] * len(requests) for name in ("nfe", "rows", "columns", "refreshes")}
        """Of every request, as `Generation` tells them."""
        self.repaired = [0] * len(requests)
        """Columns of every request, times layers, that a forward computed besides its rows."""
        self.schedule = Schedule(requests, settings, self.spec, sampler, model.device)
        self.needs, self.memory = sampler.needs(), Memory()
        named = self.spec.vocab_size if model.tokenizer is None else len(model.tokenizer)
        never = [self.schedule.canvas.mask_id, *range(named, self.spec.vocab_size)]
        self.never_proposed = torch.tensor(never, device=model.device)
        branches = 2 if settings.cfg_scale > 0 else 1
        self.states = [cache.start(self.spec, self.schedule.canvas, model.dtype) for _ in range(branches)]
        """The K/V of the rows, and with guidance those of their unconditional twins, planned like them."""
        self.kv_bytes = sum(state.nbytes for state in self.states)

    def __iter__(self) -> Iterator[Step]:
        while self.schedule.slots:
            if self.hooks:
                new = [slot for slot, request in enumerate(self.schedule.slots) if request not in self.begun]
                self.begun.update(self.schedule.slots)
                self.hooks.see_tokens(None, self.schedule.canvas, torch.tensor(new, dtype=torch.long), None)
            plan = self.survey(self.schedule.position())
            if plan is None:
                continue
            for rows in together(plan.counts):
                index = torch.tensor(rows, device=self.model.device)
                p, place = self.predict(plan, rows, index)
                yield self.commit(p, self.choose(p, place, plan, index), plan, rows, index)

    def survey(self, at: Position) -> Plan | None:
        """Plan the next forwards; None if places have changed. The host reads here what it decides on."""
        schedule, canvas = self.schedule, self.schedule.canvas
        wanted = self.sampler.scope(canvas, at.block)
        asked = self.announced(at) if self.cache.announced else wanted
        scopes = [state.needed(asked, at.block) for state in self.states]
        scope = wanted if self.needs.decided else scopes[0]
        window = self.spec.window(scope)
        columns = torch.stack([state.plan(window) for state in self.states]).any(0)
        start = at.block.columns[:, 0]
        to_the_end = torch.zeros_like(at.done)
        if self.settings.eotp is not None and wanted is at.block:
            to_the_end = (columns | ~canvas.exists | (canvas.columns < start[:, None] - self.spec.logits_shift)).all(1)
        lists = [at.done, at.undecided, columns.sum(1), schedule.rows.broken, at.entered, start, at.masked]
        done, undecided, counts, broken, entered, starts, masked, lengths, ends, widths = torch.stack(
            [*lists, canvas.lengths, to_the_end, scope.valid.sum(1)]
        ).tolist()
        for slot in range(len(done)):
            self.check(slot, bool(broken[slot]), 0 if done[slot] else undecided[slot])
        self.seconds = time.perf_counter() - self.began  # what was read is finished, on a GPU too
        if not any(done):
            for slot in (slot for slot, new in enumerate(entered) if new):
                schedule.enter(slot, starts[slot], masked[slot])
            near = Span.where(scope.valid, max(widths))  # what is left out costs neither the head nor the sampler
            scope, n = Span(scope.columns.gather(1, near.columns), near.valid), wanted.columns.shape[1]
            place = (scope.columns - wanted.columns[:, :1]).masked_fill(~scope.valid, n)
            return Plan(at.block, scope, window, columns, counts, lengths, starts, undecided, ends, widths, place, n)
        taken, keep = schedule.release([slot for slot, finished in enumerate(done) if finished])
        for state in self.states:
            for slot in taken:
                state.admit(slot)
            if keep is not None:
                state.retire(keep)
        if keep is not None:
            self.memory.keep_only(keep)
        return None

    def announced(self, at: Position) -> Span:
        """What the next step reveals of each row's block; all of a new block, whose steps are not counted yet."""
        rows, canvas, block = self.schedule.rows, self.schedule.canvas, at.block
        masked, key = canvas.undecided.gather(1, block.columns) & block.valid, Key(self.settings.noise_seed, rows.key)
        return block.only(self.sampler.announce(masked, block.columns, rows.quota, key) | at.entered[:, None])

    def check(self, slot: int, broken: bool, left: int) -> None:
        """Raise if a row cannot go on: the model returned NaN, or its masks do not become fewer."""
        request = self.schedule.slots[slot]
        if broken:
            raise DllmError(
                f"the model returned NaN logits for prompt {request} at step {int(self.schedule.rows.step[slot])}; "
                f"check the weights, or run in a wider dtype than {self.model.dtype}."
            )
        if self.hooks is None:
            if left > self.schedule.budget[slot]:
                raise RuntimeError(f"{self.sampler} revealed nothing in a step of prompt {request}.")
        elif self.counts["nfe"][request] > PATIENCE * len(self.schedule.requests[request].answer):
            raise DllmError(
                f"prompt {request} is not decided after {self.counts['nfe'][request]} forwards; "
                "a hook seems to mask all again."
            )

    def predicted(
        self, plan: Plan, rows: list[int], index: Int[Tensor, " B"]
    ) -> tuple[Span, Int[Tensor, "B W"] | None]:
        """The columns to predict, and where the scope's stand among them if these are more.

        With hooks they are whole rows. A row that computes all to its end anyway is predicted to its end, if an end of
        text may cut it short.
        """
        scope, stop = plan.scope[index], self.schedule.canvas.lengths[index]
        if self.hooks:
            return Span.between(torch.zeros_like(index), stop, max(plan.lengths[row] for row in rows)), scope.columns
        if not any(plan.to_the_end[row] for row in rows):
            return scope, None
        n = scope.columns.shape[1]
        width = max(n, *(plan.lengths[row] - plan.starts[row] for row in rows if plan.to_the_end[row]))
        far = torch.tensor([[bool(plan.to_the_end[row])] for row in rows], device=index.device)
        place = torch.arange(width, device=index.device)
        near = Span(scope.columns[:, place.clamp(max=n - 1)], F.pad(scope.valid, (0, width - n)))
        whole = Span.between(plan.block.columns[index, 0], stop, width)
        span = Span(torch.where(far, whole.columns, near.columns), torch.where(far, whole.valid, near.valid))
        return span, torch.where(far, scope.columns - whole.columns[:, :1], place[:n])

    @torch.no_grad()
    def predict(
        self, plan: Plan, rows: list[int], index: Int[Tensor, " B"]
    ) -> tuple[Prediction, Int[Tensor, "B W"] | None]:
        """Run the model on some of the rows in flight and read what it proposes. Counts the forward.

        rows: on the host, index: the same on the device.

        The second result tells where the scope stands in the prediction, if that is wider.
        """
        schedule, canvas, settings = self.schedule, self.schedule.canvas, self.settings
        counts, lengths = [plan.counts[row] for row in rows], [plan.lengths[row] for row in rows]
        scope, tokens = plan.scope[index], canvas.tokens[index]
        span, place = self.predicted(plan, rows, index)
        views = [state.view(plan.columns, plan.window, index, counts, lengths) for state in self.states]
        asked, width = span, span.columns.shape[1]
        if self.needs.shadows:
            views = [ShadowView(view, self.spec, scope, lengths, tokens.shape[1]) for view in views]
            tokens = F.pad(tokens, (0, scope.columns.shape[1]), value=canvas.mask_id)
            asked = Span(*(torch.cat([getattr(part, n) for part in (span, scope)], 1) for n in ("columns", "valid")))
        began = time.perf_counter()
        whole = {row for row, count, length in zip(rows, counts, lengths, strict=True) if count == length}
        logits = self.compute(tokens, views[0], asked, plan, rows, whole)
        if settings.cfg_scale > 0:
            given = F.pad(~canvas.open[index], (0, tokens.shape[1] - canvas.tokens.shape[1]))
            blind = self.compute(tokens.masked_fill(given, canvas.mask_id), views[1], asked, plan, rows, whole)
            logits = blind + (settings.cfg_scale + 1) * (logits - blind)
        self.forward_seconds += time.perf_counter() - began
        self.forwards += 1
        for row, count, length in zip(rows, counts, lengths, strict=True):
            request, shadows = schedule.slots[row], plan.widths[row] if self.needs.shadows else 0
            self.counts["nfe"][request] += 1
            self.counts["rows"][request] += (count + shadows) * len(self.states)
            self.counts["columns"][request] += (length + shadows) * len(self.states)
            self.counts["refreshes"][request] += row in whole
        if self.hooks:
            logits = self.hooks.see_logits(schedule.rows.step[index], tokens, lengths, logits)
        p = self.read(logits[:, :width], span, plan, index)
        if self.needs.shadows:
            current = canvas.tokens[index].gather(1, scope.columns)
            shadow = logits[:, width:].to(p.confidence.dtype).softmax(-1).gather(-1, current[..., None])
            shadow = shadow.squeeze(-1)
            if place is not None:
                shadow = torch.zeros_like(p.confidence).scatter_add(1, place, shadow.masked_fill(~scope.valid, 0.0))
            p = replace(p, shadow=shadow)
        return p, place

    def compute(
        self, tokens: Int[Tensor, "B L"], view: View, span: Span, plan: Plan, rows: list[int], whole: set[int]
    ) -> Float[Tensor, "B W V"]:
        """The logits of a span. Rows of which a cache finds that more must be computed are added to `whole`."""
        logits = self.model(tokens, view, span)
        for part, again, layers in view.repairs():
            index = torch.tensor(part, device=tokens.device)
            logits[index] = self.model(tokens[index], again, span[index])
            for row in (rows[place] for place in part):
                self.repaired[self.schedule.slots[row]] += (plan.lengths[row] - plan.counts[row]) * layers
                whole.add(row)
        return logits

    def read(self, logits: Float[Tensor, "B W V"], span: Span, plan: Plan, index: Int[Tensor, " B"]) -> Prediction:
        """What the logits of a span propose, and where its rows stand."""
        schedule, canvas, rows = self.schedule, self.schedule.canvas, self.schedule.rows[index]
        key = Key(self.settings.noise_seed, rows.key)
        propose = Proposer(self.settings, self.never_proposed, schedule.eos, key)
        proposal = propose(logits, span.columns)
        schedule.rows.broken[index] |= (proposal.confidence.isnan() & span.valid).any(1)
        return Prediction(
            **vars(proposal),
            span=span,
            mask_id=canvas.mask_id,
            current=canvas.tokens[index].gather(1, span.columns),
            open=canvas.open[index].gather(1, span.columns),
            block=plan.block[index].mask(canvas.tokens.shape[1]).gather(1, span.columns),
            answer_start=canvas.prompt_lengths[index],
            step=rows.step,
            steps=rows.steps,
            block_step=rows.block_step,
            block_steps=rows.block_steps,
            quota=rows.quota,
            key=key,
            recall=Recall(
                self.memory, index, len(schedule.slots), rows.block_step == 0, plan.place[index], plan.wanted
            ),
            propose=propose,
        )

    def choose(
        self, p: Prediction, place: Int[Tensor, "B W"] | None, plan: Plan, index: Int[Tensor, " B"]
    ) -> Int[Tensor, "B W2"]:
        """Ask the sampler for the next tokens of what is predicted, and end rows at a predicted end of text."""
        canvas, eotp = self.schedule.canvas, self.settings.eotp
        scope = plan.scope[index]
        if place is None:
            after = self.sampler(p)
        else:  # more is predicted than the sampler asked for
            part = p.of_columns(place, scope)
            change = (self.sampler(part) - part.current).masked_fill_(~scope.valid, 0)
            after = p.current.scatter_add(1, place, change)
        if eotp is not None:
            ends = p.undecided & torch.isin(p.tokens, self.schedule.eos) & (p.confidence >= eotp)
            ends &= p.span.columns >= canvas.free_from[index][:, None]
            beyond = canvas.tokens.shape[1]
            last = torch.where(ends, p.span.columns, beyond).amin(1)
            canvas.lengths[index] = canvas.lengths[index].minimum(last + 1)
            after = torch.where(p.span.columns == last[:, None], p.tokens, after)
            after = torch.where(p.span.columns > last[:, None], self.schedule.fill, after)
        return after

    def commit(
        self, p: Prediction, after: Int[Tensor, "B W"], plan: Plan, rows: list[int], index: Int[Tensor, " B"]
    ) -> Step:
        """Write the sampler's choice into the canvas and tell the observers."""
        schedule = self.schedule
        schedule.canvas.write(index, p.span, p.current, after)
        for row in rows:
            left = schedule.budget[row] if self.needs.revoking else plan.undecided[row]
            schedule.budget[row] = left - 1
        schedule.rows.step[index] += 1
        schedule.rows.block_step[index] += 1
        requests, seconds = [schedule.slots[row] for row in rows], time.perf_counter() - self.began
        step = Step(self.forwards - 1, requests, p.span, p.current, after, p.confidence, seconds)
        for observer in self.observers:
            observer(step)
        if self.hooks:
            self.hooks.see_tokens(schedule.rows.step[index] - 1, schedule.canvas, index, p.logits)
        return step

    def computed(self) -> list[int]:
        """Columns that each request computed in every layer; those in some layers count by their share, rounded."""
        shares = (round(n / max(1, self.spec.n_layers)) for n in self.repaired)
        return [rows + share for rows, share in zip(self.counts["rows"], shares, strict=True)]

    def result(self) -> Generation:
        """What was generated. Raises RuntimeError while rows are still in progress."""
        requests, finished = self.schedule.requests, self.schedule.finished
        if len(finished) < len(requests):
            raise RuntimeError(f"{len(finished)} of {len(requests)} rows are finished; take all steps first.")
        return Generation.of(
            requests,
            [finished[i] for i in range(len(requests))],
            model=self.model,
            mask_id=self.schedule.canvas.mask_id,
            stop=self.settings.stop,
            counts=self.counts | {"rows": self.computed()},
            kv_bytes=self.kv_bytes,
            forwards=self.forwards,
            seconds=self.seconds,
            forward_seconds=self.forward_seconds,
            seed=self.settings.noise_seed,
        )
