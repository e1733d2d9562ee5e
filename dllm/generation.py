"""What goes into a run, and what comes out: requests and the generation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dllm.errors import DllmError
from dllm.noise import request_id
from dllm.spec import Model

Messages = Sequence[Mapping[str, str]]
Prompt = str | Messages | Sequence[int] | Tensor


@dataclass(frozen=True)
class Request:
    """One prompt as token ids, and the name under which it draws noise."""

    prompt: list[int]
    key: int


def requests(
    model: Model, prompts: Prompt | Sequence[Prompt], *, chat: bool, repeats: int, request_ids: Sequence[int] | None
) -> list[Request]:
    """One request per prompt and repeat. `prompts` is a string, chat messages, token ids, or a list of these.

    Raises DllmError for an empty prompt, text without a tokenizer, and ids outside the vocabulary.
    """
    rows = [token_ids(model, prompt, chat) for prompt in listed(prompts)]
    if not rows:
        raise DllmError("no prompts were given; give at least one.")
    if request_ids is not None and len(request_ids) != len(rows):
        raise DllmError(f"{len(request_ids)} request_ids for {len(rows)} prompts; give one for each.")
    found: list[Request] = []
    seen: dict[tuple[int, ...], int] = {}
    for index, row in enumerate(rows):
        for repeat in range(repeats):
            if request_ids is not None:
                found.append(Request(row, request_id([request_ids[index]], repeat)))
                continue
            # The same prompt asked twice is two requests: they draw different noise.
            seen[tuple(row)] = seen.get(tuple(row), -1) + 1
            found.append(Request(row, request_id(row, seen[tuple(row)])))
    return found


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


def token_ids(model: Model, prompt: Prompt, chat: bool) -> list[int]:
    """One prompt as token ids; text becomes a user's turn where the tokenizer has a chat template."""
    spec, tokenizer = model.spec, model.tokenizer
    messages = isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
    if isinstance(prompt, str) or messages:
        if tokenizer is None:
            raise DllmError("this model has no tokenizer, so a prompt must be token ids, not text.")
        if isinstance(prompt, str) and not prompt.strip():
            raise DllmError("the prompt is empty; give some text.")
        if isinstance(prompt, str) and chat and tokenizer.chat_template:
            prompt = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, str):
            prompt = str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))
            return list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        encoded = list(tokenizer(prompt)["input_ids"])
        if not encoded:
            raise DllmError(f"the prompt {prompt!r} has no tokens; give some text.")
        return encoded
    if not isinstance(prompt, Sequence | Tensor):
        raise DllmError(f"{prompt!r} is not a prompt; give text, messages, or token ids.")
    ids: list[Any] = prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)
    if not ids:
        raise DllmError("the prompt is empty; give at least one token id.")
    strange = [i for i in ids if isinstance(i, bool) or not isinstance(i, Integral)]
    if strange:
        raise DllmError(f"{strange[0]!r} in a prompt is not a token id; ids are whole numbers.")
    outside = [i for i in ids if not 0 <= i < spec.vocab_size]
    if outside:
        raise DllmError(f"token id {outside[0]} in a prompt is outside the vocabulary of {spec.vocab_size} tokens.")
    return [int(i) for i in ids]


@dataclass(frozen=True)
class Generation:
    """Finished rows, in the order of the prompts. Unpacks as (tokens, nfe), as Fast-dLLM's functions return them."""

    tokens: Int[Tensor, "B L"]
    """Whole rows, prompt then answer; columns after a row's end hold the end of text."""
    completions: list[list[int]]
    """The answers' token ids, gen_length each."""
    texts: list[str] | None
    """The answers up to their end of text, None without a tokenizer."""
    nfe: Int[Tensor, " B"]
    """Forwards that each row took part in. A guided pair (conditional, unconditional) counts once."""
    forwards: int
    """Forwards of any number of rows together. A guided pair counts once."""
    rows: Int[Tensor, " B"]
    """Canvas columns computed in every layer, over all forwards of the row."""
    answer_tokens: Int[Tensor, " B"]
    """Tokens of the answer before its end of text."""
    seconds: float
    """From the start of the run until the host has read that the last row is done."""
    forward_seconds: float
    """Of these, inside the model's call; on a GPU that is the launch, not the work."""
    seed: int

    @classmethod
    def of(
        cls,
        requests: Sequence[Request],
        completions: list[list[int]],
        *,
        model: Model,
        stop: Sequence[str],
        nfe: list[int],
        rows: list[int],
        **rest: Any,
    ) -> "Generation":
        """Put finished answers together."""
        eos = model.spec.eos_ids
        fill = eos[0] if eos else 0
        whole = [[*r.prompt, *c] for r, c in zip(requests, completions, strict=True)]
        length = max(map(len, whole))
        answers = [c[: next((i for i, t in enumerate(c) if t in eos), len(c))] for c in completions]
        texts = None
        if model.tokenizer is not None:
            texts = [cut(model.tokenizer.decode(a, skip_special_tokens=True), stop) for a in answers]
        return cls(
            tokens=torch.tensor([row + [fill] * (length - len(row)) for row in whole]),
            completions=completions,
            texts=texts,
            nfe=torch.tensor(nfe),
            rows=torch.tensor(rows),
            answer_tokens=torch.tensor([len(a) for a in answers]),
            **rest,
        )

    @property
    def tokens_per_forward(self) -> float:
        """Answer tokens over forwards, both summed over all rows."""
        return float(self.answer_tokens.sum() / self.nfe.sum().clamp(min=1))

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens of all rows per second, end to end."""
        return float(self.answer_tokens.sum()) / self.seconds

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.tokens, self.nfe))


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    ends = [text.find(s) for s in stop if s and s in text]
    return text[: min(ends)] if ends else text
