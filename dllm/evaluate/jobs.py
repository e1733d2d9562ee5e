"""What the harness asks to be generated, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.evaluate.finished import key_of


@dataclass(frozen=True)
class Reply:
    """One finished answer and what it took."""

    text: str
    answer_tokens: int
    """Before the end of text and the task's stop strings."""
    canvas_tokens: int
    nfe: int
    generated_tokens: int = 0
    """With what ended the answer, the end of text or a stop string."""


@dataclass(frozen=True)
class Job:
    """One request of generate_until."""

    prompt: list[int]
    settings: dict[str, Any]
    until: list[str]
    key: str


def grouped(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs of equal settings together, which one run can decode."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(key_of(job.settings), []).append(job)
    return list(groups.values())


def speed(new: Sequence[Reply], seconds: float, kept: int) -> list[str]:
    """What show_speed prints: Fast-dLLM's lines, then what they leave open."""
    tokens, nfe, n = sum(a.answer_tokens for a in new), sum(a.nfe for a in new), len(new)
    generated = sum(a.generated_tokens for a in new)
    empty = sum(not a.text.strip() for a in new)
    return [
        f"Total number of tokens generated: {tokens}",
        f"Total time taken: {seconds:.2f} seconds",
        f"Tokens per second: {tokens / seconds if new else 0.0:.2f}",
        f"Total NFE is {nfe}",
        f"Tokens per forward: {generated / nfe if nfe else 0.0:.2f}",
        f"Canvas tokens: {sum(a.canvas_tokens for a in new)}",
        f"Answers decoded: {n}, of which empty: {empty}; taken from save_dir and not counted: {kept}",
        "Tokens are counted before the end of text and the stop strings (per forward: with it), NFE for every answer;",
        "the time is that of decoding, in the process that took longest.",
    ]
