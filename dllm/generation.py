"""What goes into a run, and what comes out: requests and the generation."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dllm.errors import DllmError
from dllm.metrics import Totals, Watch
from dllm.noise import request_id
from dllm.spec import Model, ModelSpec

Messages = Sequence[Mapping[str, str]]
Prompt = str | Messages | Sequence[int] | Tensor
Constraints = Mapping[int, str | int | Sequence[int] | Tensor]
"""Given tokens of an answer: from which column on, counted from its first, and what."""


@dataclass(frozen=True)
class Request:
    """One row as token ids, and the name under which it draws noise."""

    prompt: list[int]
    answer: list[int]
    """What the canvas begins with: masks (`canvas.NOISE` on a model without one), and tokens that are given."""
    key: int

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)

    def free(self, mask_id: int) -> int:
        """From which place of the answer on nothing is given: an end of text ends the answer only there."""
        return max((i + 1 for i, token in enumerate(self.answer) if token != mask_id), default=0)

    def end(self, completion: Sequence[int], mask_id: int, eos_ids: Collection[int]) -> int:
        """The place of the end of text in a decoded answer, or the answer's length."""
        free = self.free(mask_id)
        return next((i for i in range(free, len(completion)) if completion[i] in eos_ids), len(completion))


def requests(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    answer: list[int],
    *,
    chat: bool,
    repeats: int,
    request_ids: Sequence[int] | None,
) -> list[Request]:
    """One request per prompt and repeat, all with the same answer to begin with.

    `prompts` is a string, chat messages, token ids, or a list of these. Raises DllmError for an empty prompt, text
    without a tokenizer, and ids outside the vocabulary.
    """
    rows = [token_ids(model, prompt, chat) for prompt in listed(prompts)]
    if not rows:
        raise DllmError("no prompts were given; give at least one.")
    return named(rows, [answer] * len(rows), rows, repeats, request_ids)


def constrained(model: Model, answer: list[int], constraints: Constraints) -> list[int]:
    """The answer with given tokens in it. Raises DllmError for what does not fit into it, overlaps, or is a mask."""
    mask_id, given = answer[0], list(answer)
    if not isinstance(constraints, Mapping):
        raise DllmError(f"constraints={constraints!r} must map columns to text or ids, as {{200: ' The answer is'}}.")
    for start, what in constraints.items():
        if isinstance(what, Tensor) and what.ndim == 0:
            what = int(what)
        if not isinstance(what, str | Integral | Sequence | Tensor):
            raise DllmError(f"the constraint {what!r} at column {start!r} is neither text nor token ids.")
        if isinstance(what, str) and model.tokenizer is None:
            raise DllmError("this model has no tokenizer, so constraints must be token ids, not text.")
        text = model.tokenizer(what, add_special_tokens=False)["input_ids"] if isinstance(what, str) else what
        ids = checked_ids(model.spec, [text] if isinstance(text, Integral) else text, "a constraint")
        if isinstance(start, bool) or not isinstance(start, Integral) or start < 0 or start + len(ids) > len(answer):
            raise DllmError(
                f"the constraint {what!r} has {len(ids)} tokens from column {start!r} on; "
                f"the answer has the columns 0 to {len(answer) - 1}."
            )
        if mask_id in ids:
            raise DllmError(f"the constraint {what!r} at column {start} holds the mask, token id {mask_id}.")
        if any(token != mask_id for token in given[start : start + len(ids)]):
            raise DllmError(f"the constraint {what!r} at column {start}, of {len(ids)} tokens, overlaps another one.")
        given[start : start + len(ids)] = ids
    if mask_id not in given:
        raise DllmError("the constraints give every column of the answer; leave something to decode.")
    return given


def named(
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    names: Sequence[list[int]],
    repeats: int,
    request_ids: Sequence[int] | None,
) -> list[Request]:
    """Requests for these rows, `repeats` of each, with a key for the noise made from `names` or `request_ids`."""
    if request_ids is not None and len(request_ids) != len(prompts):
        raise DllmError(f"{len(request_ids)} request_ids for {len(prompts)} prompts; give one for each.")
    found: list[Request] = []
    seen: Counter[tuple[int, ...]] = Counter()
    for index, (prompt, answer, name) in enumerate(zip(prompts, answers, map(tuple, names), strict=True)):
        # The same prompt asked twice is two requests: they draw different noise.
        for repeat in range(repeats):
            key = request_id(name, seen[name]) if request_ids is None else request_id([request_ids[index]], repeat)
            seen[name] += 1
            found.append(Request(prompt, answer, key))
    return found


def check_lengths(model: Model, asked: Sequence[Request]) -> None:
    """Raise DllmError for a request that is longer than the model's context."""
    for index, request in enumerate(asked):
        if request.length > model.spec.max_length:
            raise DllmError(
                f"prompt {index} of {len(request.prompt)} tokens and gen_length={len(request.answer)} make "
                f"{request.length}; the model's context is {model.spec.max_length}."
            )


def listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts, whether one or many were given."""
    if isinstance(prompts, Tensor) and prompts.ndim in (1, 2):
        return list(prompts) if prompts.ndim == 2 else [prompts]
    if isinstance(prompts, Tensor):
        raise DllmError(f"prompts is a tensor of {prompts.ndim} dimensions; give one row of token ids, or several.")
    if not isinstance(prompts, Sequence):
        raise DllmError(
            f"prompts is a {type(prompts).__name__}; give text, chat messages, token ids, or a list of these."
        )
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], Integral | Mapping)):
        return [prompts]  # type: ignore[list-item]  # the first entry tells that this is one prompt
    return list(prompts)  # type: ignore[arg-type]  # and that these are many; each is checked on its own


def token_ids(model: Model, prompt: Prompt, chat: bool, prefix: str = "") -> list[int]:
    """One prompt as token ids; text becomes a user's turn where the tokenizer has a chat template.

    prefix: text with which the answer begins, written after the prompt and tokenized with it.
    """
    if isinstance(prompt, str) or is_messages(prompt):
        if model.tokenizer is None:
            raise DllmError("this model has no tokenizer, so a prompt must be token ids, not text.")
        text, special = rendered(model.tokenizer, prompt, chat)
        encoded = list(model.tokenizer(text + prefix, add_special_tokens=special)["input_ids"])
        if not encoded:
            raise DllmError(f"the prompt {prompt!r} has no tokens; give some text.")
        return encoded
    if not isinstance(prompt, Sequence | Tensor):
        raise DllmError(f"{prompt!r} is not a prompt; give text, messages, or token ids.")
    return checked_ids(model.spec, prompt, "a prompt")


def is_messages(prompt: Prompt) -> TypeGuard[Messages]:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def rendered(tokenizer: Any, prompt: str | Messages, chat: bool) -> tuple[str, bool]:
    """A prompt as the text that is tokenized, and whether the tokenizer adds its special tokens to it."""
    if isinstance(prompt, str) and not prompt.strip():
        raise DllmError("the prompt is empty; give some text.")
    if isinstance(prompt, str) and not (chat and tokenizer.chat_template):
        return prompt, True
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)), False


def checked_ids(spec: ModelSpec, given: Any, where: str) -> list[int]:
    """Token ids as a list. Raises DllmError if there are none, or some that the model does not have."""
    ids: list[Any] = given.tolist() if isinstance(given, Tensor) else list(given)
    if not ids:
        raise DllmError(f"{where.replace('a ', 'the ', 1)} is empty; give at least one token id.")
    strange = [i for i in ids if isinstance(i, bool) or not isinstance(i, Integral)]
    if strange:
        raise DllmError(f"{strange[0]!r} in {where} is not a token id; ids are whole numbers.")
    outside = [i for i in ids if not 0 <= i < spec.vocab_size]
    if outside:
        raise DllmError(f"token id {outside[0]} in {where} is outside the vocabulary of {spec.vocab_size} tokens.")
    return [int(i) for i in ids]


@dataclass(frozen=True)
class Generation:
    """Finished rows, in the order of the prompts. Unpacks as (tokens, nfe), as Fast-dLLM's functions return them."""

    tokens: Int[Tensor, "B L"]
    """Whole rows, prompt then answer; columns after a row's end hold the end of text."""
    completions: list[list[int]]
    """The answers' token ids, given ones included."""
    texts: list[str] | None
    """The answers up to their end of text, None without a tokenizer."""
    nfe: Int[Tensor, " B"]
    """Forwards that each row took part in. A guided pair (conditional, unconditional) counts once."""
    prefills: Int[Tensor, " B"]
    """Of these, those that met the prompt alone, as an autoregressive model's first one does; each gives a token."""
    forwards: int
    """Forwards of any number of rows together. A guided pair counts once."""
    rows: Int[Tensor, " B"]
    """Canvas columns computed in every layer, over all forwards of the row. Those that a cache computed in some layers
    count by their share of the layers, the sum rounded to a whole number."""
    columns: Int[Tensor, " B"]
    """Columns that these forwards would have computed without a cache."""
    refreshes: Int[Tensor, " B"]
    """Forwards of the row that computed all of its columns, if only in some layers."""
    kv_bytes: int
    """Bytes that the cache held for the rows in flight: keys and values, and what else it stores of every layer."""
    peak_bytes: int
    """Most bytes allocated on the GPU during the run. Elsewhere, where nothing measures that, weights and kv_bytes."""
    steps: Int[Tensor, " B"]
    """Steps of the sampler; more than `nfe` where drafts came true."""
    drafted: Int[Tensor, " B"]
    """Drafts that were computed, besides the canvas itself."""
    committed: Int[Tensor, " B"]
    """Tokens that the row's forwards decided, those behind its end of text included; not those that only fill it up."""
    flops: Int[Tensor, " B"]
    """Floating-point operations of the row, by `dllm.metrics.flops`; 0 for a network that is not ours."""
    draft_forwards: int
    draft_rows: int
    draft_flops: int
    """Forwards, positions and operations of a draft model for all rows; 0 where the drafts come from elsewhere."""
    answer_tokens: Int[Tensor, " B"]
    """Tokens of the answer before its end of text that were decoded, not given."""
    generated_tokens: Int[Tensor, " B"]
    """The same up to and including its end of text, or the token that completes a stop string: what rates count."""
    decode_tokens: Int[Tensor, " B"]
    """Of these, those that came to stand for good in steps in which no row met its prompt."""
    first_seconds: Float[Tensor, " B"]
    """From the moment the row took its place in the batch until the host could read that its first token, the leftmost
    one not given, stood for good. With samplers that take tokens back that is the end of the first block."""
    seconds: float
    """From the start of the run until the host has read that the last row is done."""
    decode_seconds: float
    """Of these, in steps in which no row met its prompt."""
    forward_seconds: float
    """Of these, inside the model's call; on a GPU that is the launch, not the work."""
    draft_seconds: float
    """Of these, spent on making drafts; on a GPU that is the launch, not the work, where it runs no draft model."""
    lossless: str
    """Against plain decoding (one token a step without a cache; autoregressive, one token a forward): "exact" for the
    same tokens with the same seed, up to rounding, "distribution" for the same distribution, else "no"."""
    seed: int

    @classmethod
    def of(
        cls,
        requests: Sequence[Request],
        completions: list[list[int]],
        *,
        model: Model,
        mask_id: int,
        stop: Sequence[str],
        counts: Mapping[str, list[int]],
        watch: Watch,
        **rest: Any,
    ) -> "Generation":
        """Put finished answers together. counts: one entry for every request, by the name of its field."""
        eos = model.spec.eos_ids
        fill = eos[0] if eos else 0
        whole = [[*r.prompt, *c] for r, c in zip(requests, completions, strict=True)]
        length = max(map(len, whole))
        ends = [r.end(c, mask_id, eos) for r, c in zip(requests, completions, strict=True)]
        texts, stops = None, [end + 1 for end in ends]
        if model.tokenizer is not None:
            found = [cut_tokens(model.tokenizer.decode, c, e, stop) for c, e in zip(completions, ends, strict=True)]
            texts, stops = [text for text, _, _ in found], [n for _, _, n in found]
        made = zip(requests, completions, stops, strict=True)
        generated = [r.answer[: min(n, len(c))].count(mask_id) for r, c, n in made]
        return cls(
            tokens=torch.tensor([row + [fill] * (length - len(row)) for row in whole]),
            completions=completions,
            texts=texts,
            answer_tokens=torch.tensor([r.answer[:n].count(mask_id) for r, n in zip(requests, ends, strict=True)]),
            generated_tokens=torch.tensor(generated),
            decode_tokens=torch.tensor([watch.decode_tokens(i, n) for i, n in enumerate(generated)]),
            first_seconds=torch.tensor(watch.first_seconds),
            decode_seconds=watch.decode_seconds,
            **rest | {name: torch.tensor(count) for name, count in counts.items()},
        )

    @property
    def totals(self) -> Totals:
        """All answers together."""
        found = {f.name: getattr(self, f.name) for f in fields(Totals) if f.name != "answers"}
        sums: dict[str, Any] = {n: v.sum().item() if isinstance(v, Tensor) else v for n, v in found.items()}
        return Totals(answers=len(self.completions), **sums)

    @property
    def reused(self) -> float:
        """The share of columns that a cache spared, 0 to 1; 0 means that nothing stored was ever read."""
        return self.totals.reused

    @property
    def accepted(self) -> float:
        """The share of drafts that came true and spared a forward, 0 to 1; 0 without drafts."""
        return self.totals.accepted

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens over forwards, both summed over all rows."""
        return self.totals.tokens_per_forward

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all rows per second, end to end."""
        return self.totals.tokens_per_second

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.tokens, self.nfe))


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    ends = [text.find(s) for s in stop if s and s in text]
    return text[: min(ends)] if ends else text


def cut_tokens(
    decode: Callable[..., str], completion: Sequence[int], end: int, stop: Sequence[str]
) -> tuple[str, int, int]:
    """An answer's text before its end of text, which stands at the place `end`, and before the first stop string.

    Then how many tokens make up this text, and how many were generated until it was complete: the end of text, or the
    token that completes a stop string, among them.
    """

    def text(n: int) -> str:
        return decode(completion[:n], skip_special_tokens=True)

    whole = text(end)
    short = cut(whole, stop)
    if len(short) == len(whole):
        return short, end, end + 1
    made = bisect_left(range(end), len(short), key=lambda n: len(text(n)))
    return short, made, bisect_left(range(end), True, key=lambda n: cut(text(n), stop) != text(n))
