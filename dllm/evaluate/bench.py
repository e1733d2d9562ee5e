"""A sampler with a cache on some questions of a task: who is right where, and what it takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dllm.errors import DllmError
from dllm.evaluate.answers import Method, answers
from dllm.evaluate.finished import Finished, key_of
from dllm.evaluate.score import wilson
from dllm.evaluate.tasks.base import Question, Task
from dllm.metrics import ratio
from dllm.spec import Model


@dataclass(frozen=True)
class Candidate:
    """A sampler and a cache, by name with options."""

    sampler: str
    cache: str


BASELINE = Candidate("static", "none")
"""One token a step, everything computed."""


@dataclass(frozen=True)
class Cell:
    """A candidate's answers to some questions."""

    right: tuple[int, ...]
    """0 or 1 for each question, in their order."""
    nfe: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Cell") -> "Cell":
        return Cell(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def tokens_per_forward(self) -> float:
        return ratio(self.generated_tokens, self.nfe)

    @property
    def tokens_per_second(self) -> float:
        return ratio(self.generated_tokens, self.seconds)

    def differs(self, base: "Cell") -> tuple[int, int]:
        """Questions that only the baseline answered right, and only this one."""
        pairs = list(zip(base.right, self.right, strict=True))
        return sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)

    def loss(self, base: "Cell") -> float:
        """The estimated loss of accuracy against the baseline; below 0 where it answered more."""
        lost, won = self.differs(base)
        return (lost - won) / len(self.right)


@dataclass(frozen=True)
class Bench:
    """Answers questions with candidates; a cell that is finished is not repeated."""

    model: Model
    task: Task
    finished: Finished
    facts: Mapping[str, Any]
    """What the answers depend on besides candidate and questions."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    tell: Callable[[str], None] = lambda _: None

    def __call__(self, candidate: Candidate, asked: Sequence[Question]) -> Cell:
        key = key_of(dict(self.facts), asdict(candidate), [[q.id, q.prompt] for q in asked])
        if key not in self.finished.found:
            self.finished.add(key, asdict(self.measure(candidate, asked)))
        kept = self.finished.found[key]
        return Cell(**kept | {"right": tuple(kept["right"])})

    def measure(self, candidate: Candidate, asked: Sequence[Question]) -> Cell:
        """Raises DllmError if the task's headline is not right or wrong for each answer."""
        method = Method.of(self.task, candidate.sampler, candidate.cache, spec=self.model.spec, **self.decoding)
        values, nfe, tokens, seconds = dict[int, Any](), 0, 0, 0.0
        for done in answers(self.model, dict(enumerate(asked)), method):
            values[done.index] = self.task.score(asked[done.index], done.texts[0])[self.task.metrics[0]]
            nfe, tokens, seconds = nfe + done.nfe, tokens + done.generated_tokens, max(seconds, done.seconds)
            self.tell(f"{candidate.sampler}, {candidate.cache}: {len(values)} of {len(asked)} questions")
        if not all(value in (0, 1) for value in values.values()):
            raise DllmError(
                f"{self.task.metrics[0]} of {self.task.name} has values between 0 and 1; tune needs 0 or 1."
            )
        return Cell(tuple(int(values[i]) for i in range(len(asked))), nfe, tokens, seconds)


Cells = dict[Candidate, Cell]


def figures(cell: Cell) -> dict[str, Any]:
    """A cell for readers."""
    right, n = sum(cell.right), len(cell.right)
    return {
        "n": n,
        "right": right,
        "accuracy": cell.accuracy,
        "interval": list(wilson(right, n)),
        "tokens_per_forward": cell.tokens_per_forward,
        "tokens_per_second": cell.tokens_per_second,
        "nfe": cell.nfe,
        "generated_tokens": cell.generated_tokens,
        "seconds": cell.seconds,
    }
