"""The one decoding loop: predict, let the sampler choose, commit, until nothing is masked.

`Run.predict` is the only place that runs the model and counts forwards; `Run.commit` the only one that writes what a
sampler chose. Rows do not wait for each other: each has its own block, finishes on its own, and gives its place to a
waiting prompt.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.cache.base import Cache
from dllm.canvas import Canvas, Span
from dllm.errors import DllmError
from dllm.generation import Generation, Request
from dllm.noise import Key
from dllm.samplers.base import Prediction, Sampler
from dllm.schedule import Position, Schedule, together
from dllm.settings import Settings
from dllm.spec import Model
from dllm.trace import Observer, Step


@dataclass(frozen=True)
class Plan:
    """What the next forwards compute, of all rows in flight."""

    window: Span
    columns: Bool[Tensor, "R L"]
    counts: list[int]
    """How many columns of each row."""
    undecided: list[int]
    """Masks that each row has left."""


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
    ) -> None:
        self.model, self.spec, self.sampler = model, model.spec, sampler
        self.settings, self.observers = settings, observers
        self.began = time.perf_counter()
        self.seconds, self.forward_seconds, self.forwards = 0.0, 0.0, 0
        self.nfe, self.computed = [0] * len(requests), [0] * len(requests)
        self.schedule = Schedule(requests, settings, self.spec, model.device)
        named = self.spec.vocab_size if model.tokenizer is None else len(model.tokenizer)
        never = [self.schedule.canvas.mask_id, *range(named, self.spec.vocab_size)]
        self.never_proposed = torch.tensor(never, device=model.device)
        branches = 2 if settings.cfg_scale > 0 else 1
        self.states = [cache.start(self.spec, self.schedule.canvas, model.dtype) for _ in range(branches)]
        """The K/V of the rows, and with guidance also those of their unconditional twins."""

    def __iter__(self) -> Iterator[Step]:
        while self.schedule.slots:
            at = self.schedule.position()
            plan = self.survey(at)
            if plan is None:
                continue
            for rows in together(plan.counts):
                for row in rows:
                    self.schedule.undecided[row] = plan.undecided[row]
                p = self.predict(at.block, plan, rows)
                yield self.commit(p, self.sampler(p), rows)

    def survey(self, at: Position) -> Plan | None:
        """Plan the next forwards; None if places have changed. The host reads here what it decides on."""
        schedule = self.schedule
        window = self.spec.window(at.block)
        columns = self.states[0].plan(window)
        host = torch.stack([at.done, at.undecided, columns.sum(1), schedule.rows.broken, at.entered]).tolist()
        for slot, (done, left, _, broken, _) in enumerate(zip(*host, strict=True)):
            if broken:
                step = int(schedule.rows.step[slot])
                raise DllmError(
                    f"the model returned NaN logits for prompt {schedule.slots[slot]} at step {step}; "
                    f"check the weights, or run in a wider dtype than {self.model.dtype}."
                )
            if not done and left >= schedule.undecided[slot]:
                raise RuntimeError(f"{self.sampler} revealed nothing in a step of prompt {schedule.slots[slot]}.")
        self.seconds = time.perf_counter() - self.began  # what was read is finished, on a GPU too
        if not any(host[0]):
            if any(host[4]):
                schedule.enter(at)
            return Plan(window, columns, counts=host[2], undecided=host[1])
        taken, keep = schedule.release([slot for slot, done in enumerate(host[0]) if done])
        for state in self.states:
            for slot in taken:
                state.admit(slot)
            if keep is not None:
                state.retire(keep)
        return None

    @torch.no_grad()
    def predict(self, block: Span, plan: Plan, rows: list[int]) -> Prediction:
        """Run the model on some of the rows in flight and read its proposals for their blocks. Counts the forward."""
        schedule, canvas = self.schedule, self.schedule.canvas
        index = torch.tensor(rows, device=self.model.device)
        counts = [plan.counts[row] for row in rows]
        lengths = [len(schedule.requests[schedule.slots[row]].prompt) + self.settings.gen_length for row in rows]
        span, tokens = block[index], canvas.tokens[index]
        views = [state.view(plan.columns, plan.window, index, counts, lengths) for state in self.states]
        began = time.perf_counter()
        logits = self.model(tokens, views[0], span)
        if self.settings.cfg_scale > 0:
            prompt = canvas.columns < canvas.prompt_lengths[index][:, None]
            blind = self.model(tokens.masked_fill(prompt, canvas.mask_id), views[1], span)
            logits = blind + (self.settings.cfg_scale + 1) * (logits - blind)
        self.forward_seconds += time.perf_counter() - began
        self.forwards += 1
        for row, count in zip(rows, counts, strict=True):
            self.nfe[schedule.slots[row]] += 1
            self.computed[schedule.slots[row]] += count * len(self.states)
        return self.propose(logits, span, tokens.gather(1, span.columns), index)

    def propose(
        self, logits: Float[Tensor, "B W V"], span: Span, current: Int[Tensor, "B W"], index: Int[Tensor, " B"]
    ) -> Prediction:
        """Proposals and their confidence from the logits of a span."""
        settings, rows, eos = self.settings, self.schedule.rows[index], self.schedule.eos
        key = Key(settings.noise_seed, rows.key)
        if settings.logits_eos_inf:
            logits = logits.index_fill(-1, eos[:1], -torch.inf)
        choices = logits.index_fill(-1, self.never_proposed, -torch.inf)
        if settings.temperature > 0:
            choices = choices.double() / settings.temperature + key.gumbel(span.columns, self.spec.vocab_size)
        tokens = choices.argmax(-1)
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        confidence = precise.softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
        self.schedule.rows.broken[index] |= (confidence.isnan() & span.valid).any(1)
        if settings.confidence_eos_eot_inf:
            confidence = confidence.masked_fill(torch.isin(tokens, eos), 0.0)
        return Prediction(
            span=span,
            mask_id=self.schedule.canvas.mask_id,
            current=current,
            tokens=tokens,
            confidence=confidence,
            logits=logits,
            step=rows.step,
            block_step=rows.block_step,
            block_steps=rows.block_steps,
            block_masked=rows.block_masked,
            key=key,
        )

    def commit(self, p: Prediction, after: Int[Tensor, "B W"], rows: list[int]) -> Step:
        """Write the sampler's choice into the canvas and tell the observers."""
        schedule, canvas = self.schedule, self.schedule.canvas
        index = torch.tensor(rows, device=self.model.device)
        part = Canvas(canvas.tokens[index], canvas.prompt_lengths[index], canvas.lengths[index], canvas.mask_id)
        part.write(p.span, p.current, after)
        canvas.tokens[index] = part.tokens
        schedule.rows.step[index] += 1
        schedule.rows.block_step[index] += 1
        requests, seconds = [schedule.slots[row] for row in rows], time.perf_counter() - self.began
        step = Step(self.forwards - 1, requests, p.span, p.current, after, p.confidence, seconds)
        for observer in self.observers:
            observer(step)
        return step

    def result(self) -> Generation:
        """What was generated. Raises RuntimeError while rows are still in progress."""
        requests, finished = self.schedule.requests, self.schedule.finished
        if len(finished) < len(requests):
            raise RuntimeError(f"{len(finished)} of {len(requests)} rows are finished; take all steps first.")
        return Generation.of(
            requests,
            [finished[i] for i in range(len(requests))],
            model=self.model,
            stop=self.settings.stop,
            nfe=self.nfe,
            rows=self.computed,
            forwards=self.forwards,
            seconds=self.seconds,
            forward_seconds=self.forward_seconds,
            seed=self.settings.noise_seed,
        )
