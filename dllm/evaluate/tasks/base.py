"""A task: what a model is asked, how its answer ends, and what the answer is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Messages = Sequence[Mapping[str, str]]
"""A conversation: {"role": ..., "content": ...} for every turn."""


@dataclass(frozen=True)
class Question:
    """One sample of a task."""

    id: str
    """Names the sample in every file, on every machine; no two of a task share one."""
    prompt: str | Messages
    """A user's turn, or a conversation; raw text where the task's `chat` is False."""
    record: Mapping[str, Any]
    """What the answer is scored against, as JSON has it."""
    prefix: str = ""
    """Text that opens the model's turn and that it goes on from."""
    target: str = ""
    """A right answer, for readers of the files."""


@dataclass(frozen=True)
class Task:
    """Questions and their scoring under one named protocol: tasks differ in methods, protocols in values."""

    name: str
    metrics: tuple[str, ...]
    """What `score` gives, the headline first; each is a share or a 0/1 of one sample, higher is better."""
    chat: bool = True
    """Whether prompts go through the model's chat template."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the protocol (gen_length, block_length, temperature, ...), which the caller may override."""
    protocol: str = ""
    """The protocol's name, "" where a task has one only."""
    n_shots: int = 0
    """Worked examples in every prompt."""

    def questions(self) -> list[Question]:
        """All questions, always in the same order."""
        raise NotImplementedError(f"{type(self).__name__} asks no questions.")

    def score(self, question: Question, answer: str) -> dict[str, Any]:
        """The value of every metric, and beside them what was extracted from the answer, as JSON has it.

        answer: the text before the first stop string and the end of text, without the question's prefix. "extracted",
        if there is one, is what the headline compares.
        """
        raise NotImplementedError(f"{type(self).__name__} scores no answers.")
