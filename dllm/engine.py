"""The one decoding loop: predict, let the sampler choose, commit, until nothing is masked.

`Run.predict` is the only place that runs the model and counts forwards; `Run.commit` the only one that writes what a
sampler chose. Rows do not wait for each other: each has its own block, finishes on its own, and gives its place to a
waiting prompt.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm import transfer
from dllm.accounts import CanvasAccounts
from dllm.cache.base import Cache
from dllm.canvas import Span, shown, undecided
from dllm.deterministic import FixedOrder, shareable
from dllm.drafts import Decision, Drafts, decide
from dllm.errors import DllmError
from dllm.forward import forward, unconditional
from dllm.generation import Generation, Request
from dllm.graphs import Graphs
from dllm.hooks import Hooks
from dllm.kernels.token_stats import banned
from dllm.metrics import EXACT, LOSSY, begin_peak, peak_bytes, weight_bytes
from dllm.noise import Key
from dllm.pace import MOST, Pace
from dllm.plan import Batch, Plan
from dllm.propose import Proposer
from dllm.samplers.base import Memory, Prediction, Recall, Sampler
from dllm.schedule import Position, Rows, Schedule, together
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
        begin_peak(model.device)
        self.accounts = CanvasAccounts(model.spec, requests, settings.blank(model.spec))
        self.begun: set[int] = set()
        """Requests that a hook has seen before their first step."""
        self.schedule = Schedule(requests, settings, self.spec, sampler, model.device)
        self.needs = sampler.needs()
        named = self.spec.vocab_size if model.tokenizer is None else len(model.tokenizer)
        mask = [] if self.spec.uniform else [self.schedule.canvas.mask_id]
        never = [*mask, *range(named, self.spec.vocab_size)]
        ids = torch.tensor(never, dtype=torch.long, device=model.device)
        self.propose = Proposer(settings, banned(ids, self.spec.vocab_size), self.schedule.eos)
        branches = 2 if settings.cfg_scale > 0 else 1
        self.states = [cache.start(self.spec, self.schedule.canvas, model.dtype) for _ in range(branches)]
        """The K/V of the rows, and with guidance those of their unconditional twins, planned like them."""
        for state in self.states:
            state.deterministic = settings.deterministic
        self.alone = settings.deterministic and not shareable(model, cache)
        """Whether every row has its forwards to itself."""
        self.graphs = Graphs.of(model) if settings.graphs else None
        self.kv_bytes = sum(state.nbytes for state in self.states)
        self.pace = Pace() if settings.drafts == "auto" else None
        asked = MOST if self.pace else int(settings.drafts or self.needs.drafts)
        reach = min(self.schedule.block_length * (2 if settings.eager else 1), self.schedule.canvas.answer_width)
        self.n_drafts = min(asked, reach)  # each reveals something more
        self.drafts = Drafts(self.schedule.canvas, self.n_drafts)
        self.memory = Memory() if self.n_drafts == 1 else None
        self.last: Plan | None = None
        """What the forwards since the last survey computed."""

    def __iter__(self) -> Iterator[Step]:
        self.tell("begin", self)
        while self.schedule.slots:
            if self.hooks:
                new = [slot for slot, request in enumerate(self.schedule.slots) if request not in self.begun]
                self.begun.update(self.schedule.slots)
                self.hooks.see_tokens(None, self.schedule.canvas, torch.tensor(new, dtype=torch.long), None)
            plan = self.survey(self.schedule.position())
            if plan is None:
                continue
            self.last = plan
            for rows in self.groups(plan):
                batch = self.batch(plan, rows)
                step = self.commit(batch, self.predict(batch))
                with self.accounts.paused():
                    yield step
        self.tell("end")

    def tell(self, event: str, *about: "Run") -> None:
        """Tell the observers that want to know that the run begins, or is over."""
        for observer in self.observers:
            if listener := getattr(observer, event, None):
                listener(*about)

    @property
    def requests(self) -> list[Request]:
        return self.schedule.requests

    @property
    def finished(self) -> dict[int, list[int]]:
        """The answers that are finished, by request, in the order in which they were."""
        return self.schedule.finished

    @property
    def method(self) -> str:
        """What decodes, in words."""
        return str(self.sampler)

    @property
    def mask_id(self) -> int:
        """What stands where nothing is decided."""
        return self.schedule.canvas.mask_id

    def widths(self, plan: Plan) -> list[int]:
        """How wide each row's part of a forward is; where nothing is stored each draft is a row of its own."""
        return [plan.work(row) for row in range(len(plan.counts))] if self.states[0].keys else plan.counts

    def groups(self, plan: Plan) -> list[list[int]]:
        """The rows of each of the next forwards."""
        return [[row] for row in range(len(plan.counts))] if self.alone else together(self.widths(plan))

    def batch(self, plan: Plan, rows: list[int]) -> Batch:
        """The forward of some rows."""
        canvas, device = self.schedule.canvas, self.model.device
        everyone = len(rows) == len(plan.counts)
        index = torch.arange(len(rows), device=device) if everyone else transfer.put(rows, device)
        drafts = self.drafts.canvases(canvas, index, max(plan.drafts[row] for row in rows))
        return plan.batch(rows, index, drafts, canvas.lengths[index], whole=self.hooks is not None)

    def survey(self, at: Position) -> Plan | None:
        """Plan the next forwards; None if places have changed. The host reads here what it decides on."""
        schedule, canvas, settings = self.schedule, self.schedule.canvas, self.settings
        wanted = self.sampler.scope(canvas, at.block)
        asked = self.announced(at) if self.cache.announced else wanted
        scopes = [state.needed(asked, at.block) for state in self.states]
        scope = wanted if self.needs.decided else scopes[0]
        narrow = wanted is at.block
        if settings.eager and narrow:
            scope = wanted = at.two_blocks
        window = self.spec.window(scope)
        columns = reduce(torch.logical_or, (state.plan(window) for state in self.states))
        start = at.block.columns[:, 0]
        to_the_end = torch.zeros_like(at.done)
        if settings.eotp is not None and narrow and self.spec.attention == "full":
            to_the_end = (columns | ~canvas.exists | (canvas.columns < start[:, None] - self.spec.logits_shift)).all(1)
        facts = {
            "done": at.done,
            "undecided": at.undecided,
            "counts": columns.sum(1),
            "broken": schedule.rows.broken,
            "entered": at.entered,
            "starts": start,
            "first": at.first,
            "masked": at.masked,
            "lengths": canvas.lengths,
            "to_the_end": to_the_end,
            "widths": scope.valid.sum(1),
        }
        step_columns, n_drafts = columns, torch.ones_like(start)
        if self.n_drafts > 1:
            step_columns, n_drafts = self.drafted(columns, window, to_the_end, at.entered)
            facts |= {"drafts": n_drafts, "step_counts": step_columns.sum(1), "steps": schedule.rows.step}
            facts |= {"behind": at.behind} if settings.eager else {}
        if self.spec.attention == "block":
            pairs = self.pairs
            facts |= {"attended": (columns * pairs).sum(1), "step_attended": (step_columns * pairs).sum(1)}
            # A block sees nothing behind itself, so that nothing behind the last computed one is read from the store.
            facts["ends"] = ((columns | step_columns) * pairs).amax(1)
        told = dict(zip(facts, torch.stack([*facts.values()]).tolist(), strict=True))
        self.note(told)
        for slot, done in enumerate(told["done"]):
            self.check(slot, bool(told["broken"][slot]), 0 if done else told["undecided"][slot])
        if any(told["done"]):
            self.release([slot for slot, done in enumerate(told["done"]) if done])
            return None
        for slot in (slot for slot, new in enumerate(told["entered"]) if new):
            schedule.enter(slot, told["starts"][slot], told["masked"][slot])
        for slot, behind in enumerate(told.get("behind", [])):
            schedule.foresee(slot, told["starts"][slot], behind)
        if scope is not wanted:  # what a cache leaves out costs neither the head nor the sampler
            near = Span.where(scope.valid, max(told["widths"]))
            scope = Span(scope.columns.gather(1, near.columns), near.valid)
        return Plan(
            scope=scope,
            place=(scope.columns - wanted.columns[:, :1]).masked_fill(~scope.valid, wanted.columns.shape[1]),
            wanted=wanted.columns.shape[1],
            window=window,
            columns=columns,
            drafts=told.get("drafts", [1] * len(start)),
            n_drafts=n_drafts,
            step_columns=step_columns,
            step_counts=told.get("step_counts", told["counts"]),
            ends=told.get("ends", told["lengths"]),
            attended=told.get("attended"),
            step_attended=told.get("step_attended"),
            **{name: told[name] for name in ("counts", "lengths", "starts", "undecided", "to_the_end", "widths")},
        )

    def release(self, done: list[int]) -> None:
        """Rows are finished: others take their places, or nobody does."""
        taken, keep = self.schedule.release(done)
        for slot in taken:
            self.drafts.forget(slot)
            self.accounts.watch.admit(self.schedule.slots[slot])
        for state in self.states:
            for slot in taken:
                state.admit(slot)
            if keep is not None:
                state.retire(keep)
        if keep is not None:
            self.drafts.keep_only(keep)
            if self.memory:
                self.memory.keep_only(keep)

    def drafted(
        self,
        columns: Bool[Tensor, "R L"],
        window: Span,
        to_the_end: Bool[Tensor, " R"],
        entered: Bool[Tensor, " R"],
    ) -> tuple[Bool[Tensor, "R L"], Int[Tensor, " R"]]:
        """What a draft of each row computes, and how many drafts there are, the canvas included.

        A row that has just come to its block has none, and none follows a step after which a refresh is due.
        """
        state, canvas = self.states[0], self.schedule.canvas
        step_columns = state.cache.step_columns(state, window)
        full = columns.sum(1) == canvas.lengths
        n_drafts = self.drafts.count.minimum(state.cache.steps_before_refresh(state, full) + 1)
        # A refresh predicts to the end where an end of text may be seen; the steps after it do not.
        alone = entered | (to_the_end & (columns != step_columns).any(1))
        return step_columns, n_drafts.masked_fill(alone, 1)

    def note(self, told: dict[str, list[int]]) -> None:
        """Note how far the last forwards brought the rows in flight, and what they cost."""
        accounts, slots, before = self.accounts, self.schedule.slots, self.accounts.seconds
        more = accounts.progress(slots, told.get("steps"))
        # What may be masked again does not stand before its block is decided.
        accounts.look(slots, told, border="starts" if self.needs.revoking else "first")
        plan, self.last = self.last, None
        if self.pace and plan:
            self.pace.observe(plan, more, len(self.groups(plan)), accounts.seconds - before)

    @property
    def pairs(self) -> Int[Tensor, "R L"]:
        """How many keys each column of the rows in flight attends to."""
        canvas, reach = self.schedule.canvas, self.spec.reach(self.schedule.canvas.columns[None])
        assert reach is not None  # asked of block-causal models only
        return (reach + 1).minimum(canvas.lengths[:, None])

    def announced(self, at: Position) -> Span:
        """What the next step reveals of each row's block; all of a new block, whose steps are not counted yet."""
        rows, canvas, block = self.schedule.rows, self.schedule.canvas, at.block
        masked, key = canvas.undecided.gather(1, block.columns) & block.valid, Key(self.settings.noise_seed, rows.key)
        return block.only(self.sampler.announce(masked, block.columns, rows.quota, key) | at.entered[:, None])

    def check(self, slot: int, broken: bool, left: int) -> None:
        """Raise if a row cannot go on: the model returned NaN, or its masks do not become fewer."""
        request = self.schedule.slots[slot]
        asked, nfe = self.schedule.requests[request], self.accounts.counts["nfe"][request]
        if broken:
            raise DllmError(
                f"the model returned NaN logits for prompt {request} at step {int(self.schedule.rows.step[slot])}; "
                f"check the weights, or run in a wider dtype than {self.model.dtype}."
            )
        if self.hooks is None:
            most = (1 + self.needs.renoises) * len(asked.answer)
            if nfe > most if self.needs.renoises else left > self.schedule.budget[slot]:
                raise RuntimeError(f"{self.sampler} revealed nothing in a step of prompt {request}.")
        elif nfe > PATIENCE * len(asked.answer):
            raise DllmError(f"prompt {request} is not decided after {nfe} forwards; a hook seems to mask all again.")

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "B N W V"]:
        """Run the model on some of the rows in flight, and count that.

        The logits of the batch's span in every draft; with shadows theirs stand behind the span.
        """
        settings, canvas = self.settings, self.schedule.canvas
        shadow = canvas.mask_id if self.needs.shadows else None
        batch = replace(batch, drafts=shown(batch.drafts, canvas.mask_id))
        with self.accounts.forwarding(), FixedOrder() if settings.deterministic else nullcontext():
            logits, repaired = forward(self.model, self.states[0], batch, shadow, self.graphs)
            parts = [repaired]
            if settings.cfg_scale > 0:
                blind = unconditional(batch, ~canvas.open[batch.index], canvas.mask_id)
                without, twins = forward(self.model, self.states[1], blind, shadow, self.graphs)
                logits = without + (settings.cfg_scale + 1) * (logits - without)
                parts.append(twins)
        self.accounts.ran(batch, self.schedule.slots, parts, self.needs.shadows, whole=self.hooks is not None)
        if self.hooks:
            logits = self.hooks.see_logits(
                self.schedule.rows.step[batch.index], batch.drafts[:, 0], batch.lengths, logits[:, 0]
            )[:, None]
        return logits

    def read(self, batch: Batch, logits: Float[Tensor, "B W V"], tokens: Int[Tensor, "B L"], rows: Rows) -> Prediction:
        """What the logits of a batch's span propose, where its rows hold these tokens and their counters stand so."""
        canvas, index, span, width = self.schedule.canvas, batch.index, batch.span, batch.span.columns.shape[1]
        key, plan = Key(self.settings.noise_seed, rows.key), batch.plan
        proposal = self.propose(logits[:, :width], span.columns, key, self.sampler.temperature(rows.block_step))
        shadow = None
        if self.needs.shadows:
            current = tokens.gather(1, batch.scope.columns)[..., None]
            shadow = logits[:, width:].to(proposal.confidence.dtype).softmax(-1).gather(-1, current).squeeze(-1)
            if batch.place is not None:
                shadow = shadow.masked_fill(~batch.scope.valid, 0.0)
                shadow = torch.zeros_like(proposal.confidence).scatter_add(1, batch.place, shadow)
        recall = Recall(
            self.memory, index, len(self.schedule.slots), rows.block_step == 0, plan.place[index], plan.wanted
        )
        return Prediction(
            **vars(proposal),
            span=span,
            mask_id=canvas.mask_id,
            current=tokens.gather(1, span.columns),
            open=canvas.open[index].gather(1, span.columns),
            block=rows.in_block(span.columns),
            answer_start=canvas.prompt_lengths[index],
            step=rows.step,
            steps=rows.steps,
            block_step=rows.block_step,
            block_steps=rows.block_steps,
            quota=rows.quota,
            key=key,
            recall=recall,
            propose=self.propose,
            shadow=shadow,
        )

    def choose(self, batch: Batch, p: Prediction) -> tuple[Int[Tensor, "B W"], Int[Tensor, " B"], Bool[Tensor, " B"]]:
        """Ask the sampler for the next tokens of the span, and end rows at a predicted end of text.

        The other results are how long the rows are then, and which of them were ended so.
        """
        canvas, eotp, index = self.schedule.canvas, self.settings.eotp, batch.index
        lengths, ended = canvas.lengths[index], torch.zeros_like(index, dtype=torch.bool)
        if batch.place is None:
            after = self.sampler(p)
        else:  # more is predicted than the sampler asked for
            part = p.of_columns(batch.place, batch.scope)
            change = (self.sampler(part) - part.current).masked_fill_(~batch.scope.valid, 0)
            after = p.current.scatter_add(1, batch.place, change)
        if eotp is not None:
            ends = p.undecided & torch.isin(p.tokens, self.schedule.eos) & (p.confidence >= eotp)
            ends &= p.span.columns >= canvas.free_from[index][:, None]
            if self.spec.attention == "block":
                ends &= p.block  # no more is computed without drafts
            beyond = canvas.tokens.shape[1]
            last = torch.where(ends, p.span.columns, beyond).amin(1)
            lengths, ended = lengths.minimum(last + 1), ends.any(1)
            after = torch.where(p.span.columns == last[:, None], p.tokens, after)
            after = torch.where(p.span.columns > last[:, None], self.schedule.fill, after)
        return after, lengths, ended

    def decide(self, batch: Batch, logits: Float[Tensor, "B N W V"]) -> Decision:
        """What the sampler makes of the predictions."""
        rows, index = self.schedule.rows[batch.index], batch.index
        if batch.n == 1:
            p = self.read(batch, logits[:, 0], batch.drafts[:, 0], rows)
            return Decision(p, p.current, *self.choose(batch, p), p.confidence, rows, p.broken)
        each = torch.arange(len(index), device=index.device)
        return decide(
            lambda at, rows: self.read(batch, logits[each, at], batch.drafts[each, at], rows),
            lambda p: self.choose(batch, p),
            batch.drafts.gather(2, batch.span.columns[:, None].expand(-1, batch.n, -1)),
            rows,
            batch.plan.n_drafts[index],
            self.drafts.beyond[index],
            self.needs.subset,
        )

    def commit(self, batch: Batch, logits: Float[Tensor, "B N W V"]) -> Step:
        """Write what the sampler chooses into the canvas, draft the next steps, and tell the observers."""
        schedule, canvas, index = self.schedule, self.schedule.canvas, batch.index
        made = self.decide(batch, logits)
        p = made.p
        schedule.rows.broken[index] |= made.broken
        canvas.write(index, p.span, made.before, made.after)
        canvas.lengths[index] = made.lengths
        for state in self.states:
            state.saw(index, p.span, p.confidence, p.draws)
        for row in batch.rows:
            left = schedule.budget[row] if self.needs.revoking else batch.plan.undecided[row]
            schedule.budget[row] = left - 1
        if self.n_drafts == 1:
            schedule.rows.step[index] += 1
            schedule.rows.block_step[index] += 1
        else:
            self.look_ahead(batch, made)
        requests, seconds = [schedule.slots[row] for row in batch.rows], self.accounts.elapsed
        told = (made.before, made.after, p.tokens, made.confidence)
        step = Step(self.accounts.forwards - 1, requests, p.span, *told, seconds, p.mask_id)
        for observer in self.observers:
            observer(step)
        if self.hooks:
            self.hooks.see_tokens(schedule.rows.step[index] - 1, canvas, index, p.logits)
        return step

    def look_ahead(self, batch: Batch, made: Decision) -> None:
        """Note the steps that were taken, and draft the next ones."""
        rows, p, current = self.schedule.rows, made.p, made.after
        for state in self.states:
            state.skip(batch.index, made.rows.step - rows.step[batch.index])
        left = (undecided(current, p.mask_id) & p.masked).any(1)
        # With an end of text that was written ahead, the next block is not what was planned.
        now = replace(made.rows, next_steps=made.rows.next_steps.masked_fill(made.ended, 0)).ahead(1).into_next(~left)
        rows.put(batch.index, now)
        if batch.place is not None:
            p, current = p.of_columns(batch.place, batch.scope), current.gather(1, batch.place)
        n = min(self.pace.drafts, self.n_drafts) if self.pace else self.n_drafts
        with self.accounts.drafting():
            self.drafts.make(self.sampler, p, current, now, self.schedule.canvas, batch.index, n)

    @property
    def lossless(self) -> str:
        """Whether the tokens are those of `dllm.verify`'s plain decoding by construction."""
        plain = self.needs.plain and self.settings.steps is None and self.settings.eotp is None
        return EXACT if plain and self.cache.lossless else LOSSY

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
            kv_bytes=self.kv_bytes,
            peak_bytes=peak_bytes(self.model.device, weight_bytes(self.model) + self.kv_bytes),
            draft_forwards=0,
            draft_rows=0,
            draft_flops=0,
            lossless=self.lossless,
            seed=self.settings.noise_seed,
            **self.accounts.told(),
        )
