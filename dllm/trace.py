"""What a generation did, step by step: the record that observers get, and the observers that keep or show it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.canvas import Span


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
    confidence: Float[Tensor, "B W"]
    seconds: float
    """Since the generation began."""

    @property
    def changed(self) -> Bool[Tensor, "B W"]:
        return (self.before != self.after) & self.span.valid


Observer = Callable[[Step], None]


@dataclass
class Trace:
    """Collects every change: observers=[trace := Trace()]."""

    changes: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, step: Step) -> None:
        rows, places = step.changed.nonzero(as_tuple=True)
        columns, tokens = step.span.columns[rows, places].tolist(), step.after[rows, places].tolist()
        confidence = step.confidence[rows, places].tolist()
        for row, column, token, sure in zip(rows.tolist(), columns, tokens, confidence, strict=True):
            self.changes.append(
                {
                    "step": step.index,
                    "request": step.requests[row],
                    "column": column,
                    "token": token,
                    "confidence": round(sure, 6),
                    "seconds": round(step.seconds, 6),
                }
            )

    def to_json(self, path: str | Path) -> None:
        """Write one JSON object per changed token and line."""
        Path(path).write_text("".join(json.dumps(change) + "\n" for change in self.changes))
