"""What heads are trained on: texts, and a model's last hidden states at every token of their answers, computed once.

The states go to a folder in parts, each written at once, so that an interrupted run goes on where it stopped.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dllm.cache.base import full_view
from dllm.causal import generate_causal
from dllm.errors import DllmError
from dllm.fingerprint import fingerprint
from dllm.generation import token_ids
from dllm.models.transformer import Transformer
from dllm.weights import line
from dllm.zoo import tasks

PART = 256
"""Texts in a part."""
HELD_OUT = 16
"""Of a file's lines every so many is held out."""
MIXTURE = ("math", "math", "math", "lists", "lists", "code")

Text = tuple[list[int], list[int]]
"""The token ids of a prompt and of its answer, the end of text included."""


@dataclass(frozen=True)
class Source:
    """Which texts: generated problems, or the lines of a file; and whose answers to them."""

    model: str
    seed: int
    texts: int
    data: str | None
    """JSON lines, each {"prompt": "...", "answer": "..."}. None: problems of the bundled models' tasks."""
    distill: bool
    """Take the model's own greedy answers, which are what the heads will have to guess, instead of the given ones."""
    gen_length: int

    def pairs(self, split: str, n: int) -> Iterator[tuple[str, str]]:
        """Prompts and answers, `n` at most; split: "train" or "test"."""
        if self.data is None:
            for i in range(n):
                problem = tasks.make(MIXTURE[i % len(MIXTURE)], self.seed, i, split)
                yield problem.question, problem.answer
            return
        lines = [text for text in Path(self.data).read_text(encoding="utf-8").splitlines() if text.strip()]
        wanted = [i for i in range(len(lines)) if (i % HELD_OUT == HELD_OUT - 1) == (split == "test")]
        for i in wanted[:n]:
            try:
                found = json.loads(lines[i])
                yield str(found["prompt"]), str(found.get("answer", "") if self.distill else found["answer"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DllmError(
                    f'line {i + 1} of {self.data} is not {{"prompt": "...", "answer": "..."}} ({line(error)}).'
                ) from error

    def encoded(self, model: Transformer, split: str, n: int) -> Iterator[list[Text]]:
        """Parts of texts as token ids."""
        pairs = list(self.pairs(split, n))
        for first in range(0, len(pairs), PART):
            some = pairs[first : first + PART]
            prompts = [token_ids(model, prompt, True) for prompt, _ in some]
            if self.distill:
                answers = generate_causal(model, prompts, gen_length=self.gen_length, batch_size=64).completions
            else:
                end = list(model.spec.eos_ids[:1])
                answers = [model.tokenizer(a, add_special_tokens=False)["input_ids"] + end for _, a in some]
            yield list(zip(prompts, answers, strict=True))


@torch.no_grad()
def states(model: Transformer, texts: Sequence[Text], rows: int = 16) -> dict[str, Tensor]:
    """Every place of the answers: its hidden state (N, C), the token behind it (N,), and which text it is of (N,).

    A place predicts the token behind it: the first is the prompt's last token, the last the answer's last but one.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]) + len(texts[i][1]))
    found: dict[str, list[Tensor]] = {"hidden": [], "next": [], "text": []}
    for first in range(0, len(order), rows):
        some = order[first : first + rows]
        whole = [texts[i][0] + texts[i][1] for i in some]
        width = max(map(len, whole))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in whole], device=model.device)
        view = full_view(model.spec, [len(row) for row in whole], model.device)
        hidden = model.norm(model.states(tokens, view, model.rotation(width)))
        for i, row, of_row in zip(some, whole, hidden, strict=True):
            begin = len(texts[i][0]) - 1
            found["hidden"].append(of_row[begin : len(row) - 1].cpu())
            found["next"].append(torch.tensor(row[begin + 1 :]))
            found["text"].append(torch.full((len(row) - 1 - begin,), i))
    return {name: torch.cat(parts) for name, parts in found.items()}


def cached(
    source: Source, model: Transformer, split: str, n: int, folder: Path, of: Transformer | None = None
) -> list[Path]:
    """The files of a split's states, those that are missing computed now. Raises DllmError if others lie there.

    of: the model whose states these are where it is not the one that answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told, facts = folder / "source.json", vars(source) | {"target": fingerprint(of or model)}
    if not told.exists():
        (folder / "source.json.tmp").write_text(json.dumps(facts))
        os.replace(folder / "source.json.tmp", told)
    elif json.loads(told.read_text()) != facts:
        raise DllmError(
            f"{folder} holds the states of another run ({told.read_text()}); remove it, or give another --states."
        )
    count = -(-sum(1 for _ in source.pairs(split, n)) // PART)
    if not count:
        raise DllmError(f"{source.data} has no lines to {split} on; it needs {HELD_OUT} or more.")
    files = [folder / f"{split}-{i:04d}.safetensors" for i in range(count)]
    if all(file.exists() for file in files):
        return files
    for file, texts in zip(files, source.encoded(model, split, n), strict=True):
        if not file.exists():
            save_file(states(of or model, texts), f"{file}.tmp")
            os.replace(f"{file}.tmp", file)
            print(json.dumps({"states": file.name}), flush=True)
    return files


def targets(part: dict[str, Tensor], n_heads: int) -> Tensor:
    """(N, 1 + n_heads): the tokens behind every place, 1 to 1 + n_heads on; -1 beyond the end of its text."""
    following, text = part["next"], part["text"]
    found = torch.full((len(following), 1 + n_heads), -1)
    for k in range(1 + n_heads):
        same = text[k:] == text[: len(text) - k]
        found[: len(same), k] = torch.where(same, following[k:], -1)
    return found


def opened(file: Path, n_heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Hidden states and targets of one part, on the device."""
    part: dict[str, Any] = load_file(file)
    return part["hidden"].to(device), targets(part, n_heads).to(device)
