"""Ask a model the questions of a task: one run of the engine, and every answer as soon as it is finished."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import dllm.cache
import dllm.samplers
import dllm.speculate
from dllm.api import canonical, check_model, choose_cache, choose_sampler, start
from dllm.cache.base import Cache
from dllm.causal import CAUSAL_NAMES, choose_drafter
from dllm.causal import canonical as canonical_causal
from dllm.causal import check_model as check_causal
from dllm.engine import Run
from dllm.errors import DllmError
from dllm.evaluate.tasks.base import Question, Task
from dllm.generation import Request, check_lengths, cut_tokens, named, rendered, token_ids
from dllm.options import parts
from dllm.samplers.base import Sampler
from dllm.settings import ALIASES, Settings
from dllm.spec import Model, ModelSpec
from dllm.speculate import Drafter, Rule
from dllm.speculate.run import UNDECIDED, CausalRun

WARM_UP = 8
"""Steps that load what is loaded lazily, before time is taken."""
TOTALS = ("seconds", "decode_seconds", "draft_seconds", "forwards")
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
        spec: ModelSpec | None = None,
        remasking: str = "low_confidence",
        **settings: Any,
    ) -> "Method":
        """Arguments as of `dllm.generate`; seed is 0 unless given, so that resumed runs and ranks agree.

        spec: of the model, whose own blocks go before the protocol's; it also names the usual sampler.
        """
        options = over(task, settings, spec)
        default = ModelSpec.sampler if spec is None else spec.sampler
        made, stored = choose_sampler(sampler, remasking, options, default), choose_cache(cache, options)
        checked = Settings(**{"seed": 0} | {"stop": stops(task, options)} | canonical(options))
        return cls(made, stored, checked, task.chat)

    def blank(self, model: Model) -> int:
        """What stands in an answer where nothing is decided. Raises DllmError for a model that does not fill masks."""
        check_model(model)
        return self.settings.blank(model.spec)

    def start(self, model: Model, requests: Sequence[Request]) -> Run:
        return start(model, requests, self.sampler, self.cache, self.settings, (), None)

    def facts(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        settings = {name: value for name, value in asdict(self.settings).items() if name != "noise_seed"}
        cache = None if self.cache is None else parts(self.cache, dllm.cache.CACHES)
        sampler = parts(self.sampler, dllm.samplers.SAMPLERS)
        if fitted := self.sampler.needs().fitted:
            sampler["fitted"] = asdict(fitted)
        return {"sampler": sampler, "cache": cache, "chat": self.chat} | settings


@dataclass(frozen=True)
class CausalMethod:
    """How a causal model answers questions: the same settings, as far as they are not about masks."""

    drafter: Drafter | None
    rule: Rule
    settings: Settings
    chat: bool

    @classmethod
    def of(
        cls, task: Task, draft: str | Drafter | None = None, verify: str | Rule = "match", **settings: Any
    ) -> "CausalMethod":
        """Arguments as of `dllm.generate_causal`. What the task's protocol says about masks is left out."""
        options = over(task, settings)
        own = {name: value for name, value in options.items() if name in settings or name in CAUSAL_NAMES}
        stop = stops(task, own)
        checked = Settings(**{"seed": 0} | canonical_causal(own) | {"stop": stop})
        return cls(choose_drafter(draft, None), dllm.speculate.rule(verify), checked, task.chat)

    def blank(self, model: Model) -> int:
        """What stands in an answer where nothing is decided. Raises DllmError for a model that is not causal."""
        check_causal(model)
        return UNDECIDED

    def start(self, model: Any, requests: Sequence[Request]) -> CausalRun:
        check_lengths(model, requests)
        return CausalRun(model, requests, self.drafter, self.rule, self.settings)

    def facts(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        settings = {name: getattr(self.settings, name) for name in CAUSAL_NAMES}
        drafter = None if self.drafter is None else parts(self.drafter, dllm.speculate.DRAFTERS)
        rule = parts(self.rule, dllm.speculate.RULES)
        return {"draft": drafter, "verify": rule, "chat": self.chat} | settings


def method_of(spec: ModelSpec, task: Task, name: str = "", **decoding: Any) -> Method | CausalMethod:
    """How a model answers, from what was given for it. Raises DllmError for what is meant for the other kind.

    name: of the model, for samplers that need what comes with it.
    """
    causal = spec.attention == "causal"
    for option in ("sampler", "cache", "remasking") if causal else ("draft", "verify"):
        if (value := decoding.pop(option, None)) is not None:
            kind = "decodes token by token" if causal else "fills masks"
            raise DllmError(f"{option}={value!r} does not apply to this model, which {kind}; leave it out.")
    if causal:
        return CausalMethod.of(task, **decoding)
    method = Method.of(task, spec=spec, **decoding)
    return replace(method, sampler=method.sampler.for_model(name))


def over(task: Task, settings: Mapping[str, Any], spec: ModelSpec | None = None) -> dict[str, Any]:
    """What was given, over the settings of the task's protocol, of which a model with blocks of its own keeps these."""
    given = {ALIASES.get(name, name) for name in settings}
    own = {"block_length": spec.block_length} if spec and spec.block_length else {}
    return {name: value for name, value in (dict(task.settings) | own).items() if name not in given} | dict(settings)


def stops(task: Task, options: dict[str, Any]) -> tuple[str, ...]:
    """The task's stop strings and those that were given, which leave `options`."""
    more = options.pop("stop", ())
    return (*task.stop, *([more] if isinstance(more, str) else more))


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
    prefills: int
    """Of these, those that met the prompt alone (causal models)."""
    committed: int
    """Tokens that these decided, those behind the end of text included."""
    rows: int
    """Columns computed in every layer, over these forwards."""
    answer_tokens: int
    """Tokens that make up `texts`: nothing at or after a stop string or the end of text."""
    generated_tokens: int
    """These and what ended them: the end of text, or the tokens that completed a stop string."""
    canvas_tokens: int
    """Columns of the canvas that were to be filled, those after the end of text included."""
    decode_tokens: int
    """Generated tokens that came to stand for good in steps in which no row met its prompt."""
    first_seconds: float
    """From the moment each answer took its place in the batch until its first token stood for good."""
    seconds: float
    """The engine's time until this answer was seen to be finished, since the run began: a running total."""
    decode_seconds: float
    """Of these, in steps in which no row met its prompt. In a batch a row that joins takes the whole step out."""
    draft_seconds: float
    """Of these, spent on drafting."""
    forwards: int
    """Forwards of any number of rows together, since the run began."""


def answers(model: Model, asked: Mapping[int, Question], method: Method | CausalMethod) -> Iterator[Answer]:
    """Answer questions, given by their index in the task, in the order in which they are finished.

    A question's answer does not depend on which others are asked (up to rounding, where the dtype is not float64).
    Raises DllmError for a question too long for the model.
    """
    blank = method.blank(model)
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
    blanks = [blank] * settings.gen_length
    requests = named(prompts, [blanks] * len(prompts), prompts, settings.num_samples, indices)
    for _ in zip(range(WARM_UP), method.start(model, requests), strict=False):
        pass
    run = method.start(model, requests)
    repeats, left, told = settings.num_samples, dict.fromkeys(indices, settings.num_samples), 0
    steps, going = iter(run), True
    while going:
        going = next(steps, None) is not None
        for row in [*run.finished][told:]:
            told, place = told + 1, row // repeats
            index = indices[place]
            left[index] -= 1
            if not left[index]:
                text, _ = rendered(model.tokenizer, asked[index].prompt, method.chat)
                rows = range(place * repeats, (place + 1) * repeats)
                yield answer_of(run, index, text + asked[index].prefix, rows)


def answer_of(run: Run | CausalRun, index: int, prompt: str, rows: range) -> Answer:
    """The answer to a question whose rows are finished."""
    texts, lengths, generated = zip(*(text_of(run, row, run.settings.stop) for row in rows), strict=True)
    accounts = run.accounts
    sums = {name: sum(accounts.counts[name][row] for row in rows) for name in ("nfe", "prefills", "committed", "rows")}
    decoded = [accounts.watch.decode_tokens(row, n) for row, n in zip(rows, generated, strict=True)]
    return Answer(
        index=index,
        prompt=prompt,
        texts=texts,
        **sums,
        answer_tokens=sum(lengths),
        generated_tokens=sum(generated),
        canvas_tokens=sum(len(run.finished[row]) for row in rows),
        decode_tokens=sum(decoded),
        first_seconds=sum(accounts.watch.first_seconds[row] for row in rows),
        seconds=accounts.seconds,
        decode_seconds=accounts.watch.decode_seconds,
        draft_seconds=accounts.draft_seconds,
        forwards=accounts.forwards,
    )


def text_of(run: Run | CausalRun, row: int, stop: Sequence[str]) -> tuple[str, int, int]:
    """A finished row's text before its end of text and first stop string, how many tokens make it up, and how many were
    generated until it was complete."""
    completion = run.finished[row]
    end = run.requests[row].end(completion, run.mask_id, run.spec.eos_ids)
    text, n, generated = cut_tokens(run.model.tokenizer.decode, completion, end, stop)
    return text, n, min(generated, len(completion))
