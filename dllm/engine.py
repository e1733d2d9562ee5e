"""The one decoding loop: predict, let the sampler choose, commit, until nothing is masked.

`Run.predict` is the only place that runs the model and counts forwards; `Run.commit` the only one that writes what a
sampler chose. Rows do not wait for each other: each has its own block, finishes on its own, and gives its place to a
waiting prompt.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.cache.base import Cache, CacheState, View
from dllm.cache.side import draft_view, shadow_view
from dllm.canvas import Span
from dllm.drafts import Decision, Drafts, decide
from dllm.errors import DllmError
from dllm.generation import Generation, Request
from dllm.hooks import Hooks
from dllm.noise import Key
from dllm.pace import MOST, Pace
from dllm.plan import Plan
from dllm.propose import Proposer
from dllm.samplers.base import Memory, Prediction, Recall, Sampler
from dllm.schedule import Position, Schedule, together
from dllm.settings import Settings
from dllm.spec import Model
from dllm.trace import Observer, Step

PATIENCE = 10
"""Forwards for every column of an answer, after which a hook that masks again is taken to do so for ever."""


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
        names = ("nfe", "rows", "columns", "refreshes", "steps", "drafted")
        self.counts = {name: [0] * len(requests) for name in names}
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
        self.pace = Pace() if settings.drafts == "auto" else None
        self.n_drafts = MOST if self.pace else int(settings.drafts or self.needs.drafts)
        self.drafts = Drafts(self.schedule.canvas, self.n_drafts)
        self.last: Plan | None = None
        """What the forwards since the last survey computed."""

    def __iter__(self) -> Iterator[Step]:
        while self.schedule.slots:
            if self.hooks:
                new = [slot for slot, request in enumerate(self.schedule.slots) if request not in self.begun]
                self.begun.update(self.schedule.slots)
                self.hooks.see_tokens(None, self.schedule.canvas, torch.tensor(new, dtype=torch.long), None)
            plan = self.survey(self.schedule.position())
            if plan is None:
                continue
            self.last = plan
            for rows in together([plan.work(row) for row in range(len(plan.counts))]):
                index = torch.tensor(rows, device=self.model.device)
                every, place = self.predict(plan, rows, index)
                step = self.commit(every, place, plan, rows, index)
                given = time.perf_counter()
                yield step
                self.began += time.perf_counter() - given  # the clock stands still while the caller has the step

    def survey(self, at: Position) -> Plan | None:
        """Plan the next forwards; None if places have changed. The host reads here what it decides on."""
        schedule, canvas = self.schedule, self.schedule.canvas
        wanted = self.sampler.scope(canvas, at.block)
        asked = self.announced(at) if self.cache.announced else wanted
        scopes = [state.needed(asked, at.block) for state in self.states]
        scope = wanted if self.needs.decided else scopes[0]
        narrow = wanted is at.block
        if self.settings.eager and narrow:
            scope = wanted = at.two_blocks
        window = self.spec.window(scope)
        columns = torch.stack([state.plan(window) for state in self.states]).any(0)
        start = at.block.columns[:, 0]
        to_the_end = torch.zeros_like(at.done)
        if self.settings.eotp is not None and narrow:
            to_the_end = (columns | ~canvas.exists | (canvas.columns < start[:, None] - self.spec.logits_shift)).all(1)
        again, drafted = self.drafted(columns, window, to_the_end, at.entered)
        lists = [at.done, at.undecided, columns.sum(1), schedule.rows.broken, at.entered, start, at.masked]
        lists += [canvas.lengths, to_the_end, scope.valid.sum(1), drafted, again.sum(1), schedule.rows.step, at.behind]
        (
            done,
            undecided,
            counts,
            broken,
            entered,
            starts,
            masked,
            lengths,
            ends,
            widths,
            drafts,
            againsts,
            steps,
            behind,
        ) = torch.stack(lists).tolist()
        self.measure(steps)
        for slot in range(len(done)):
            self.check(slot, bool(broken[slot]), 0 if done[slot] else undecided[slot])
        if not any(done):
            for slot in (slot for slot, new in enumerate(entered) if new):
                schedule.enter(slot, starts[slot], masked[slot])
            if self.settings.eager:
                for slot, next_block in enumerate(zip(starts, behind, strict=True)):
                    schedule.foresee(slot, *next_block)
            near = Span.where(scope.valid, max(widths))  # what is left out costs neither the head nor the sampler
            scope, n = Span(scope.columns.gather(1, near.columns), near.valid), wanted.columns.shape[1]
            place = (scope.columns - wanted.columns[:, :1]).masked_fill(~scope.valid, n)
            known = (counts, lengths, starts, undecided, ends, widths, drafts)
            return Plan(at.block, scope, window, columns, *known, drafted, again, againsts, place, n)
        taken, keep = schedule.release([slot for slot, finished in enumerate(done) if finished])
        for state in self.states:
            for slot in taken:
                state.admit(slot)
                self.drafts.forget(slot)
            if keep is not None:
                state.retire(keep)
        if keep is not None:
            self.memory.keep_only(keep)
            self.drafts.keep_only(keep)
        return None

    def drafted(
        self, columns: Bool[Tensor, "R L"], window: Span, to_the_end: Tensor, entered: Bool[Tensor, " R"]
    ) -> tuple[Bool[Tensor, "R L"], Int[Tensor, " R"]]:
        """What a further draft of each row computes, and how many drafts there are, the canvas included.

        A row that has just come to its block has none, and none follows a step after which a refresh is due.
        """
        state, canvas = self.states[0], self.schedule.canvas
        none = torch.zeros_like(columns), torch.ones_like(canvas.lengths)
        if self.n_drafts == 1:
            return none
        again = state.cache.repeated(state, window)
        full = columns.sum(1) == canvas.lengths
        drafted = self.drafts.count.minimum(state.cache.repeats(state, full) + 1)
        # A refresh predicts to the end where an end of text may be seen; the steps after it do not.
        alone = entered | (to_the_end.bool() & (columns != again).any(1))
        return again, drafted.masked_fill(alone, 1)

    def measure(self, steps: list[int]) -> None:
        """Note how far the last forwards brought the rows in flight, and what they cost."""
        requests, before = self.schedule.slots, self.seconds
        self.seconds = time.perf_counter() - self.began  # what was read is finished, on a GPU too
        more = [now - self.counts["steps"][request] - 1 for now, request in zip(steps, requests, strict=True)]
        for now, request in zip(steps, requests, strict=True):
            self.counts["steps"][request] = now
        plan, self.last = self.last, None
        if self.pace and plan and not plan.refreshed:
            columns = sum(map(plan.work, range(len(plan.counts))))
            self.pace.observe(plan.drafts, more, sum(plan.again_counts), columns, self.seconds - before)

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

    @torch.no_grad()
    def predict(
        self, plan: Plan, rows: list[int], index: Int[Tensor, " B"]
    ) -> tuple[Prediction, Int[Tensor, "B W"] | None]:
        """Run the model on some of the rows in flight and read what it proposes. Counts the forward.

        rows: on the host, index: the same on the device.

        The second result tells where the scope stands in the prediction, if that is wider.
        """
        schedule, canvas, settings = self.schedule, self.schedule.canvas, self.settings
        span, place = plan.span(rows, index, canvas.lengths[index], whole=self.hooks is not None)
        n = max(plan.drafts[row] for row in rows)
        drafts = self.drafts.canvases(canvas, index, n)
        began = time.perf_counter()
        whole = {row for row in rows if plan.counts[row] == plan.lengths[row]}
        logits = self.forward(self.states[0], drafts, span, plan, rows, index, whole)
        if settings.cfg_scale > 0:
            blind = drafts.masked_fill(~canvas.open[index][:, None], canvas.mask_id)
            unconditional = self.forward(self.states[1], blind, span, plan, rows, index, whole)
            logits = unconditional + (settings.cfg_scale + 1) * (logits - unconditional)
        self.forward_seconds += time.perf_counter() - began
        self.forwards += 1
        for row in rows:
            request, shadows = schedule.slots[row], plan.widths[row] if self.needs.shadows else 0
            length = plan.drafts[row] * plan.lengths[row]
            self.counts["nfe"][request] += 1
            self.counts["rows"][request] += (plan.work(row) + shadows) * len(self.states)
            self.counts["columns"][request] += (length + shadows) * len(self.states)
            self.counts["refreshes"][request] += row in whole
            self.counts["drafted"][request] += plan.drafts[row] - 1
        if n > 1:
            at = torch.arange(len(index), device=index.device).repeat_interleave(n)
            return self.read(logits, span[at], plan, index[at], drafts.flatten(0, 1)), place
        tokens, scope, width = drafts[:, 0], plan.scope[index], span.columns.shape[1]
        if self.hooks:
            lengths = [plan.lengths[row] for row in rows]
            logits = self.hooks.see_logits(schedule.rows.step[index], tokens, lengths, logits)
        p = self.read(logits[:, :width], span, plan, index, tokens)
        if self.needs.shadows:
            current = tokens.gather(1, scope.columns)
            shadow = logits[:, width:].to(p.confidence.dtype).softmax(-1).gather(-1, current[..., None])
            shadow = shadow.squeeze(-1)
            if place is not None:
                shadow = torch.zeros_like(p.confidence).scatter_add(1, place, shadow.masked_fill(~scope.valid, 0.0))
            p = replace(p, shadow=shadow)
        return p, place

    def forward(
        self,
        state: CacheState,
        drafts: Int[Tensor, "B N L"],
        span: Span,
        plan: Plan,
        rows: list[int],
        index: Int[Tensor, " B"],
        whole: set[int],
    ) -> Float[Tensor, "BN W2 V"]:
        """The logits of a span in every draft, those of a row together; with shadows theirs stand behind the span."""
        n, length = drafts.shape[1:]
        counts, lengths = [plan.counts[row] for row in rows], [plan.lengths[row] for row in rows]
        if n > 1 and not state.keys:  # nothing is shared: each draft is a row of the batch
            own = [(i, draft) for i, row in enumerate(rows) for draft in range(plan.drafts[row])]
            row, draft = torch.tensor(own, device=index.device).unbind(1)
            lengths = [lengths[i] for i, _ in own]
            view = state.view(plan.columns, plan.window, index[row], lengths, lengths)
            logits = self.model(drafts[row, draft], view, span[row])
            where = torch.zeros_like(drafts[:, :, 0])
            where[row, draft] = torch.arange(len(own), device=index.device)
            return logits[where.flatten()]
        view, tokens, asked = state.view(plan.columns, plan.window, index, counts, lengths), drafts[:, 0], span
        if n > 1:
            again = Span.where(plan.again[index], max(plan.again_counts[row] for row in rows))
            view = draft_view(view, self.spec, again, n - 1, span, lengths, length)
            others = drafts[:, 1:].gather(2, again.columns[:, None].expand(-1, n - 1, -1))
            tokens = torch.cat([tokens, others.flatten(1)], 1)
            asked = Span(span.columns.repeat(1, n), span.valid.repeat(1, n))
        if self.needs.shadows:
            scope = plan.scope[index]
            view = shadow_view(view, self.spec, scope, lengths, length)
            tokens = F.pad(tokens, (0, scope.columns.shape[1]), value=self.schedule.canvas.mask_id)
            asked = Span(torch.cat([span.columns, scope.columns], 1), torch.cat([span.valid, scope.valid], 1))
        logits = self.compute(tokens, view, asked, plan, rows, whole)
        return logits.reshape(len(rows) * n, -1, logits.shape[-1])

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

    def read(
        self,
        logits: Float[Tensor, "B W V"],
        span: Span,
        plan: Plan,
        index: Int[Tensor, " B"],
        tokens: Int[Tensor, "B L"],
    ) -> Prediction:
        """What the logits of a span propose, and where its rows stand, whose canvas holds these tokens."""
        schedule, canvas, rows = self.schedule, self.schedule.canvas, self.schedule.rows[index]
        key = Key(self.settings.noise_seed, rows.key)
        propose = Proposer(self.settings, self.never_proposed, schedule.eos)
        return Prediction(
            **vars(propose(logits, span.columns, key)),
            span=span,
            mask_id=canvas.mask_id,
            current=tokens.gather(1, span.columns),
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
        self, p: Prediction, place: Int[Tensor, "B W"] | None, scope: Span, index: Int[Tensor, " B"]
    ) -> tuple[Int[Tensor, "B W2"], Int[Tensor, " B"]]:
        """Ask the sampler for the next tokens of what is predicted, and end rows at a predicted end of text.

        The second result is how long the rows are then.
        """
        canvas, eotp = self.schedule.canvas, self.settings.eotp
        lengths = canvas.lengths[index]
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
            lengths = lengths.minimum(last + 1)
            after = torch.where(p.span.columns == last[:, None], p.tokens, after)
            after = torch.where(p.span.columns > last[:, None], self.schedule.fill, after)
        return after, lengths

    def commit(
        self, every: Prediction, place: Int[Tensor, "B W"] | None, plan: Plan, rows: list[int], index: Int[Tensor, " B"]
    ) -> Step:
        """Write what the sampler chooses into the canvas, draft the next steps, and tell the observers.

        every: the predictions of all drafts, those of a row together.
        """
        schedule, canvas, scope = self.schedule, self.schedule.canvas, plan.scope[index]
        made = decide(
            every,
            lambda p: self.choose(p, place, scope, index),
            schedule.rows[index],
            plan.drafted[index],
            self.drafts.beyond[index],
            canvas.lengths[index],
            self.needs.subset,
        )
        p = made.p
        schedule.rows.broken[index] |= (p.confidence.isnan() & p.span.valid).any(1)
        canvas.write(index, p.span, made.before, made.after)
        canvas.lengths[index] = made.lengths
        for row in rows:
            left = schedule.budget[row] if self.needs.revoking else plan.undecided[row]
            schedule.budget[row] = left - 1
        if self.n_drafts == 1:
            schedule.rows.step[index] += 1
            schedule.rows.block_step[index] += 1
        else:
            self.look_ahead(made, place, scope, index)
        requests, seconds = [schedule.slots[row] for row in rows], time.perf_counter() - self.began
        step = Step(self.forwards - 1, requests, p.span, made.before, made.after, made.confidence, seconds, p.mask_id)
        for observer in self.observers:
            observer(step)
        if self.hooks:
            self.hooks.see_tokens(schedule.rows.step[index] - 1, canvas, index, p.logits)
        return step

    def look_ahead(
        self, made: Decision, place: Int[Tensor, "B W"] | None, scope: Span, index: Int[Tensor, " B"]
    ) -> None:
        """Note the steps that were taken, and draft the next ones."""
        schedule, p, current = self.schedule, made.p, made.after
        for state in self.states:
            state.skip(index, made.rows.step - schedule.rows.step[index])
        left = ((current == p.mask_id) & p.masked).any(1)
        now = made.rows.ahead(1).into_next(~left)
        schedule.rows.put(index, now)
        if place is not None:
            p, current = p.of_columns(place, scope), current.gather(1, place)
        n = self.pace.drafts if self.pace else self.n_drafts
        self.drafts.make(self.sampler, p, current, now, schedule.canvas, index, n)

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
