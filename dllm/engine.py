"""The one decoding loop: survey the rows, predict, let the sampler choose, commit, until nothing is masked.

`Run.predict` is the only place that runs the model and counts forwards; `Run.commit` the only one that writes what a
sampler chose. Rows do not wait for each other: each has its own block, finishes on its own, and gives its place to a
waiting prompt.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dllm.cache.base import Cache
from dllm.canvas import Canvas, Span
from dllm.errors import DllmError
from dllm.generation import Generation, Request
from dllm.noise import Key
from dllm.samplers.base import Prediction, Sampler
from dllm.schedule import together
from dllm.settings import Settings
from dllm.spec import Model
from dllm.trace import Observer, Step


@dataclass(frozen=True)
class Survey:
    """Where every row in flight stands: tensors on the device, and lists that the host read in one transfer."""

    block: Span
    window: Span
    plan: Tensor
    """Columns that the next forward computes. Bool (R, L)"""
    entered: Tensor
    """Rows whose block is a new one. Bool (R,)"""
    masked: Tensor
    """Masked columns of the block. Int (R,)"""
    done: list[int]
    undecided: list[int]
    counts: list[int]


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
        self.model, self.sampler, self.settings, self.observers = model, sampler, settings, observers
        self.spec, self.mask_id = model.spec, settings.mask(model.spec)
        self.requests = list(requests)
        self.waiting = deque(range(len(requests)))
        self.began = time.perf_counter()
        self.forward_seconds, self.forwards = 0.0, 0
        self.nfe, self.rows = [0] * len(requests), [0] * len(requests)
        self.finished: dict[int, list[int]] = {}

        n_rows = min(len(requests), settings.batch_size)
        length = max(len(r.prompt) for r in requests) + settings.gen_length
        self.device, dtype = model.device, model.dtype
        zeros = torch.zeros(n_rows, dtype=torch.long, device=self.device)
        self.canvas = Canvas(zeros[:, None].repeat(1, length), zeros.clone(), zeros.clone(), self.mask_id)
        named = self.spec.vocab_size if model.tokenizer is None else len(model.tokenizer)
        self.forbidden = torch.tensor([self.mask_id, *range(named, self.spec.vocab_size)], device=self.device)
        self.eos = torch.tensor(self.spec.eos_ids, device=self.device)
        self.slots = list(range(n_rows))
        """The request that each row in flight works on."""
        self.block_start = zeros - 1
        self.block_step, self.block_masked, self.step = zeros.clone(), zeros.clone(), zeros.clone()
        self.keys = zeros.clone()
        self.broken = zeros.bool()
        self.undecided = [0] * n_rows
        self.states = [cache.start(self.spec, self.canvas, dtype) for _ in range(1 + (settings.cfg_scale > 0))]
        """The K/V of the rows, and with guidance those of their unconditional twins."""
        for slot in range(n_rows):
            self.admit(slot)

    def admit(self, slot: int) -> None:
        """Give a row of the batch to the next waiting prompt."""
        index = self.waiting.popleft()
        request, canvas = self.requests[index], self.canvas
        n = len(request.prompt)
        canvas.tokens[slot] = self.spec.eos_ids[0] if self.spec.eos_ids else 0
        canvas.tokens[slot, :n] = torch.tensor(request.prompt, device=self.device)
        canvas.tokens[slot, n : n + self.settings.gen_length] = self.mask_id
        canvas.prompt_lengths[slot], canvas.lengths[slot] = n, n + self.settings.gen_length
        self.slots[slot], self.block_start[slot], self.step[slot] = index, -1, 0
        self.keys[slot] = request.key
        self.undecided[slot] = self.settings.gen_length + 1
        for state in self.states:
            state.admit(slot)

    def retire(self, done: Sequence[int]) -> None:
        """Record the rows that are finished; their places go to waiting prompts, or away."""
        gone = []
        for slot in done:
            prompt, length = int(self.canvas.prompt_lengths[slot]), int(self.canvas.lengths[slot])
            self.finished[self.slots[slot]] = self.filled(self.canvas.tokens[slot, prompt:length].tolist())
            if self.waiting:
                self.admit(slot)
            else:
                gone.append(slot)
        if not gone:
            return
        rows = [r for r in range(len(self.slots)) if r not in gone]
        keep = torch.tensor(rows, dtype=torch.long, device=self.device)
        self.slots, self.undecided = [self.slots[r] for r in rows], [self.undecided[r] for r in rows]
        canvas = self.canvas
        canvas.tokens, canvas.lengths = canvas.tokens[keep], canvas.lengths[keep]
        canvas.prompt_lengths = canvas.prompt_lengths[keep]
        for name in ("block_start", "block_step", "block_masked", "step", "keys", "broken"):
            setattr(self, name, getattr(self, name)[keep])
        for state in self.states:
            state.retire(keep)

    def filled(self, answer: list[int]) -> list[int]:
        """The answer with all that follows its end of text replaced by it, if the row was allowed to stop there."""
        ends = [i for i, token in enumerate(answer) if token in self.spec.eos_ids]
        if not self.settings.eos_early_stop or not ends:
            return answer
        return answer[: ends[0] + 1] + [self.spec.eos_ids[0]] * (len(answer) - ends[0] - 1)

    def survey(self) -> Survey:
        """Find every row's block, the one that holds its first mask, and what its next forward computes."""
        canvas, length = self.canvas, self.settings.block_length
        undecided, beyond = canvas.undecided, canvas.tokens.shape[1]
        first = torch.where(undecided, canvas.columns, beyond).amin(1)
        done = first == beyond
        if self.settings.eos_early_stop and len(self.eos):
            ended = canvas.answer & torch.isin(canvas.tokens, self.eos)
            done = done | (torch.where(ended, canvas.columns, beyond).amin(1) < first)
        start = canvas.prompt_lengths + (first - canvas.prompt_lengths) // length * length
        block = Span.between(start, (start + length).minimum(canvas.lengths), min(length, self.settings.gen_length))
        window = self.spec.window(block)
        plan = self.states[0].plan(window)
        masked = ((canvas.read(block) == self.mask_id) & block.valid).sum(1)
        host = torch.stack([done, undecided.sum(1), plan.sum(1), self.broken]).tolist()
        for slot, broken in enumerate(host[3]):
            if broken:
                raise DllmError(
                    f"the model returned NaN logits for prompt {self.slots[slot]} at step {int(self.step[slot])}; "
                    f"check the weights, or run in a wider dtype than {self.model.dtype}."
                )
        finished = [slot for slot, flag in enumerate(host[0]) if flag]
        return Survey(block, window, plan, start != self.block_start, masked, finished, host[1], host[2])

    def __iter__(self) -> Iterator[Step]:
        while self.slots:
            at = self.survey()
            if at.done:
                self.retire(at.done)
                continue
            for slot, left in enumerate(at.undecided):
                if left >= self.undecided[slot]:
                    raise RuntimeError(f"{self.sampler} revealed nothing in a step of prompt {self.slots[slot]}.")
            self.undecided = at.undecided
            self.block_start = at.block.columns[:, 0]
            self.block_step = self.block_step.masked_fill(at.entered, 0)
            self.block_masked = torch.where(at.entered, at.masked, self.block_masked)
            for rows in together(at.counts):
                p = self.predict(at, rows)
                yield self.commit(p, self.sampler(p), rows)
            self.step, self.block_step = self.step + 1, self.block_step + 1

    def predict(self, at: Survey, rows: list[int]) -> Prediction:
        """Run the model on some rows in flight and read its proposals for their blocks. Counts the forward."""
        everyone = len(rows) == len(self.slots)
        index = torch.tensor(rows, device=self.device)
        counts = [at.counts[r] for r in rows]
        lengths = [len(self.requests[self.slots[r]].prompt) + self.settings.gen_length for r in rows]
        span = at.block if everyone else at.block[index]
        tokens = self.canvas.tokens if everyone else self.canvas.tokens[index]
        began = time.perf_counter()
        logits = self.model(tokens, self.states[0].view(at.plan, at.window, index, counts, lengths), span)
        if self.settings.cfg_scale > 0:
            given = self.canvas.columns < self.canvas.prompt_lengths[index][:, None]
            view = self.states[1].view(at.plan, at.window, index, counts, lengths)
            blind = self.model(tokens.masked_fill(given, self.mask_id), view, span)
            logits = blind + (self.settings.cfg_scale + 1) * (logits - blind)
        self.forward_seconds += time.perf_counter() - began
        self.forwards += 1
        for row, count in zip(rows, counts, strict=True):
            self.nfe[self.slots[row]] += 1
            self.rows[self.slots[row]] += count * len(self.states)
        return self.propose(logits, span, index)

    def propose(self, logits: Float[Tensor, "B W V"], span: Span, index: Int[Tensor, " B"]) -> Prediction:
        """Proposals and their confidence from the logits of a span."""
        settings, key = self.settings, Key(self.settings.noise_seed, self.keys[index])
        if settings.logits_eos_inf:
            logits = logits.index_fill(-1, self.eos, -torch.inf)
        choices = logits.index_fill(-1, self.forbidden, -torch.inf)
        if settings.temperature > 0:
            noise = key.gumbel(span.columns, self.spec.vocab_size)
            choices = choices.double() / settings.temperature + noise
        tokens = choices.argmax(-1)
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        chosen = precise.gather(-1, tokens[..., None]).squeeze(-1)
        confidence = (chosen - precise.logsumexp(-1)).exp()
        self.broken[index] |= (confidence.isnan() & span.valid).any(1)
        if settings.confidence_eos_eot_inf:
            confidence = confidence.masked_fill(torch.isin(tokens, self.eos), 0.0)
        share = self.steps_of_block(span, index)
        return Prediction(
            span=span,
            mask_id=self.mask_id,
            current=self.canvas.tokens[index].gather(1, span.columns),
            tokens=tokens,
            confidence=confidence,
            logits=logits,
            step=self.step[index],
            block_step=self.block_step[index],
            quota=self.sampler.quota(self.block_masked[index], share, self.block_step[index]),
            key=key,
        )

    def steps_of_block(self, span: Span, index: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The block's share of `steps`, by its columns; the shares of all blocks add up to `steps`."""
        begin = span.columns[:, 0] - self.canvas.prompt_lengths[index]
        end = begin + span.valid.sum(1)
        steps, total = self.settings.steps or self.settings.gen_length, self.settings.gen_length
        return (end * steps // total - begin * steps // total).clamp(min=1)

    def commit(self, p: Prediction, after: Int[Tensor, "B W"], rows: list[int]) -> Step:
        """Write the sampler's choice into the canvas and tell the observers."""
        if len(rows) == len(self.slots):
            self.canvas.write(p.span, p.current, after)
        else:
            canvas, index = self.canvas, torch.tensor(rows, device=self.device)
            some = Canvas(canvas.tokens[index], canvas.prompt_lengths[index], canvas.lengths[index], self.mask_id)
            some.write(p.span, p.current, after)
            canvas.tokens[index] = some.tokens
        requests = [self.slots[r] for r in rows]
        seconds = time.perf_counter() - self.began
        step = Step(self.forwards - 1, requests, p.span, p.current, after, p.confidence, seconds)
        for observer in self.observers:
            observer(step)
        return step

    def result(self) -> Generation:
        """What was generated. Raises RuntimeError while rows are still in progress."""
        if len(self.finished) < len(self.requests):
            raise RuntimeError(f"{len(self.finished)} of {len(self.requests)} rows are finished; take all steps first.")
        return Generation.of(
            self.requests,
            [self.finished[i] for i in range(len(self.requests))],
            model=self.model,
            stop=self.settings.stop,
            nfe=self.nfe,
            rows=self.rows,
            forwards=self.forwards,
            seconds=time.perf_counter() - self.began,
            forward_seconds=self.forward_seconds,
            seed=self.settings.noise_seed,
        )
