"""Ask a model the questions of a task: one run of the engine, and every answer as soon as it is finished."""

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

import dllm.cache
import dllm.samplers
from dllm.api import canonical, check_model, choose_cache, choose_sampler, start
from dllm.cache.base import Cache
from dllm.engine import Run
from dllm.errors import DllmError
from dllm.evaluate.tasks.base import Question, Task
from dllm.generation import cut, named, rendered, token_ids
from dllm.options import parts
from dllm.samplers.base import Sampler
from dllm.settings import ALIASES, Settings
from dllm.spec import Model

WARM_UP = 8
"""Steps that load what is loaded lazily, before time is taken."""
TOTALS = ("seconds", "decode_seconds", "forwards")
"""Fields of an answer that are running totals."""


@dataclass(frozen=True)
class Method:
    """How questions are answered: the settings of the task's protocol, and over these what the caller gave."""

    sampler: Sampler
    cache: Cache | None
    settings: Settings
    """With the task's stop strings among them."""
    chat: bool

    @classmethod
    def of(
        cls,
        task: Task,
        sampler: str | Sampler | None = None,
        cache: str | Cache | None = None,
        *,
        remasking: str = "low_confidence",
        **settings: Any,
    ) -> "Method":
        """Arguments as of `dllm.generate`; seed is 0 unless given, so that resumed runs and ranks agree."""
        given = {ALIASES.get(name, name) for name in settings}
        options = {name: value for name, value in task.settings.items() if name not in given} | settings
        made, stored = choose_sampler(sampler, remasking, options), choose_cache(cache, options)
        more = options.pop("stop", ())
        stop = (*task.stop, *([more] if isinstance(more, str) else more))
        checked = Settings(**{"seed": 0} | canonical(options) | {"stop": stop})
        return cls(made, stored, checked, task.chat)

    def facts(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        settings = {name: value for name, value in asdict(self.settings).items() if name != "noise_seed"}
        cache = None if self.cache is None else parts(self.cache, dllm.cache.CACHES)
        sampler = parts(self.sampler, dllm.samplers.SAMPLERS)
        if fitted := self.sampler.needs().fitted:
            sampler["fitted"] = asdict(fitted)
        return {"sampler": sampler, "cache": cache, "chat": self.chat} | settings


@dataclass(frozen=True)
class Answer:
    """What a model said to a question, `num_samples` times. Counts and times are sums over these."""

    index: int
    """Of the question among all of the task."""
    prompt: str
    """The whole text that the model was given, the chat template's and the answer's prefix included."""
    texts: tuple[str, ...]
    """Before the first stop string and the end of text."""
    nfe: int
    """Forwards that the answers took part in."""
    rows: int
    """Columns computed in every layer, over these forwards."""
    answer_tokens: int
    """Tokens that make up `texts`: nothing at or after a stop string or the end of text."""
    canvas_tokens: int
    """Columns of the canvas that were to be filled, those after the end of text included."""
    decode_tokens: int
    """Answer tokens that came in steps after the first forward of every row in them: no row joined there."""
    seconds: float
    """The engine's time until this answer was seen to be finished, since the run began: a running total."""
    decode_seconds: float
    """Of these, in such steps. In a batch a row that joins takes the whole step out, so these are part of the steps."""
    forwards: int
    """Forwards of any number of rows together, since the run began."""


def answers(model: Model, asked: Mapping[int, Question], method: Method) -> Iterator[Answer]:
    """Answer questions, given by their index in the task, in the order in which they are finished.

    A question's answer does not depend on which others are asked (up to rounding, where the dtype is not float64).
    Raises DllmError for a question too long for the model.
    """
    check_model(model)
    if not asked:
        return
    if model.tokenizer is None:
        raise DllmError("this model has no tokenizer, so it cannot be asked the questions of a task.")
    if method.chat and not model.tokenizer.chat_template:
        raise DllmError(
            "the task speaks through a chat template, and this model's tokenizer has none; take an instruct model, or "
            "a protocol for base models."
        )
    settings, indices = method.settings, list(asked)
    prompts = [token_ids(model, q.prompt, method.chat, q.prefix) for q in asked.values()]
    masks = [settings.mask(model.spec)] * settings.gen_length
    requests = named(prompts, [masks] * len(prompts), prompts, settings.num_samples, indices)

    def run() -> Run:
        return start(model, requests, method.sampler, method.cache, settings, (), None)

    for _ in zip(range(WARM_UP), run(), strict=False):
        pass
    clock = Clock(run())
    repeats, left, told, going = settings.num_samples, dict.fromkeys(indices, settings.num_samples), 0, True
    while going:
        going = clock.step()
        for row in [*clock.run.schedule.finished][told:]:
            told, place = told + 1, row // repeats
            index = indices[place]
            left[index] -= 1
            if not left[index]:
                text, _ = rendered(model.tokenizer, asked[index].prompt, method.chat)
                rows = range(place * repeats, (place + 1) * repeats)
                yield clock.answer(index, text + asked[index].prefix, rows)


class Clock:
    """Takes the steps of a run and their time, apart from what is done with the answers."""

    def __init__(self, run: Run) -> None:
        self.run, self.steps = run, iter(run)
        self.seconds, self.decode_seconds = 0.0, 0.0
        self.decoding: list[set[int]] = [set() for _ in run.schedule.requests]
        """Places of every request's answer that were last written in a step after the first forward of all its rows."""

    def step(self) -> bool:
        """Take a step; False after the last one."""
        began = time.perf_counter()
        step = next(self.steps, None)
        if self.run.model.device.type == "cuda":
            torch.cuda.synchronize(self.run.model.device)
        spent = time.perf_counter() - began
        self.seconds += spent
        if step is None:
            return False
        decoding = all(self.run.counts["nfe"][request] > 1 for request in step.requests)
        self.decode_seconds += spent * decoding
        rows, columns = step.changed.nonzero(as_tuple=True)
        for row, column in zip(rows.tolist(), step.span.columns[rows, columns].tolist(), strict=True):
            request = step.requests[row]
            place = column - len(self.run.schedule.requests[request].prompt)
            (self.decoding[request].add if decoding else self.decoding[request].discard)(place)
        return True

    def answer(self, index: int, prompt: str, rows: range) -> Answer:
        """The answer to a question whose rows are finished."""
        texts, lengths = zip(*(text_of(self.run, row, self.run.settings.stop) for row in rows), strict=True)
        decoded = sum(
            len([place for place in self.decoding[row] if place < n]) for row, n in zip(rows, lengths, strict=True)
        )
        return Answer(
            index=index,
            prompt=prompt,
            texts=texts,
            nfe=sum(self.run.counts["nfe"][row] for row in rows),
            rows=sum(self.run.counts["rows"][row] for row in rows),
            answer_tokens=sum(lengths),
            canvas_tokens=sum(len(self.run.schedule.finished[row]) for row in rows),
            decode_tokens=decoded,
            seconds=self.seconds,
            decode_seconds=self.decode_seconds,
            forwards=self.run.forwards,
        )


def text_of(run: Run, row: int, stop: Sequence[str]) -> tuple[str, int]:
    """A finished row's text before its end of text and first stop string, and how many tokens make it up."""
    decode, completion = run.model.tokenizer.decode, run.schedule.finished[row]
    end = run.schedule.requests[row].end(completion, run.settings.mask(run.spec), run.spec.eos_ids)
    whole = decode(completion[:end], skip_special_tokens=True)
    text = cut(whole, stop)
    if len(text) == len(whole):
        return text, end
    return text, bisect_left(range(end), len(text), key=lambda n: len(decode(completion[:n], skip_special_tokens=True)))
