"""What a generation did, step by step: the record that observers get, and the observers that keep or show it."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.canvas import NOISE, Span, shown, undecided


@dataclass(frozen=True)
class Step:
    """One forward and what the sampler made of it, for the rows that took part."""

    index: int
    """The forward's number in its generation, from 0."""
    requests: list[int]
    """Which of the prompts given to `generate` each row is. (B)"""
    span: Span
    """Absolute columns of the row, prompt included. (B, W)"""
    before: Int[Tensor, "B W"]
    after: Int[Tensor, "B W"]
    """Where `mask_id` is `canvas.NOISE` (-1), ~t stands for a token t that may still change, here and in `before`."""
    proposed: Int[Tensor, "B W"]
    """What the model proposed for every column, revealed or not."""
    confidence: Float[Tensor, "B W"]
    seconds: float
    """Since the generation began."""
    mask_id: int

    @property
    def changed(self) -> Bool[Tensor, "B W"]:
        return (self.before != self.after) & self.span.valid


Observer = Callable[[Step], None]
"""Called with every step. One that has methods begin(run) and end() is also told of the first and the last moment."""


@dataclass
class Trace:
    """Collects every change: observers=[trace := Trace()].

    A change names the `step` (the forward's number in the generation, from 0), the `request` (which prompt, from 0),
    the `forward` (how many the request has had, from 1), the `column` of the row, prompt included, the `token` that
    stands there now, the `kind` ("revealed" where a mask or noise stood, "remasked" where a mask stands now, "renoised"
    where other noise does, else "edited"), the `confidence` in what the model proposed for the column (0 to 1), and the
    `seconds` since the generation began.
    """

    changes: list[dict[str, Any]] = field(default_factory=list)
    forwards: Counter[int] = field(default_factory=Counter)
    """Of every request so far."""

    def __call__(self, step: Step) -> None:
        self.forwards.update(step.requests)
        rows, places = step.changed.nonzero(as_tuple=True)
        columns, confidence = step.span.columns[rows, places].tolist(), step.confidence[rows, places].tolist()
        before, after = step.before[rows, places], step.after[rows, places]
        open_before, open_after = (undecided(tokens, step.mask_id).tolist() for tokens in (before, after))
        tokens = shown(after, step.mask_id).tolist()
        for row, column, was_open, is_open, token, sure in zip(
            rows.tolist(), columns, open_before, open_after, tokens, confidence, strict=True
        ):
            taken_back = "renoised" if step.mask_id == NOISE else "remasked"
            kind = taken_back if is_open else "revealed" if was_open else "edited"
            self.changes.append(
                {
                    "step": step.index,
                    "request": step.requests[row],
                    "forward": self.forwards[step.requests[row]],
                    "column": column,
                    "token": token,
                    "kind": kind,
                    "confidence": round(sure, 6),
                    "seconds": round(step.seconds, 6),
                }
            )

    def to_json(self, path: str | Path, run: Any = None, **settings: Any) -> None:
        """Write one JSON object per changed token and line.

        With the finished `dllm.Run` that was observed, every change also has its `text`, and a line before them tells
        what a player needs besides: the `settings`, the mask's id, and of every request its prompt, what its canvas
        began with, its whole answer (what fills it after the end of text is no change), and its forwards.
        """
        lines = self.changes
        if run is not None:
            piece = pieces(run.model.tokenizer)
            lines = [header(run, settings), *(change | {"text": piece(change["token"])} for change in lines)]
        Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))


def header(run: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The first line of a trace: what was asked, and what came out."""
    done, tokenizer = run.result(), run.model.tokenizer
    piece = pieces(tokenizer)
    requests = [
        {
            "prompt": request.prompt,
            "prompt_text": "".join(map(piece, request.prompt))
            if tokenizer is None
            else tokenizer.decode(request.prompt),
            "canvas": request.answer,
            "answer": answer,
            "answer_text": [piece(token) for token in answer],
            "nfe": nfe,
        }
        for request, answer, nfe in zip(run.requests, done.completions, done.nfe.tolist(), strict=True)
    ]
    return {
        "trace": 1,
        "settings": {"sampler": str(run.method)} | settings,
        "mask_id": run.mask_id,
        "eos_ids": list(run.spec.eos_ids),
        "seconds": round(done.seconds, 6),
        "requests": requests,
    }


def pieces(tokenizer: Any) -> Callable[[int], str]:
    """Gives a token as text, on its own: a character cut into several tokens shows as replacement characters.

    Without a tokenizer the text is the token's number.
    """
    if tokenizer is None:
        return lambda token: f"{token} "
    return lambda token: str(tokenizer.decode([token], skip_special_tokens=False))
