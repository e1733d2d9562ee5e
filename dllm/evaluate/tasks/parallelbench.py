"""ParallelBench: easy one token at a time, and what breaks first when tokens that depend on each other come together.

Operations, lengths and metrics are ParallelBench's (arXiv:2510.04767). The words and the wording are those that the
bundled models know, there is no worked example in the prompt, and nothing judges grammar; a score of the paper is
therefore another figure. Copy, reverse and sort have one right answer, whose tokens can be told apart from each other;
a shuffle or a latin square has many, and tokens decided independently belong to different ones.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

import dllm.options
from dllm.errors import DllmError, unknown
from dllm.evaluate.tasks.base import Question, Task
from dllm.zoo.tasks import Problem, split_of
from dllm.zoo.tasks.lists import LISTS, MORE_LISTS, WORDS, Line, make_line

SYMBOLS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@dataclass(frozen=True)
class Drawn(Task):
    """A task whose questions are drawn: each depends on the seed, its number and the fields of the task alone."""

    name: str = ""
    metrics: tuple[str, ...] = ("score", "score_strict")
    settings: Mapping[str, Any] = field(default_factory=lambda: {"gen_length": 64})
    n: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        self.within("n", 1, 1_000_000)
        self.within("seed", 0, (1 << 63) - 1)

    def within(self, option: str, low: int, high: int) -> None:
        """Raise DllmError unless the field lies from low to high."""
        value = getattr(self, option)
        if not low <= value <= high:
            raise DllmError(f"{option}={value} of the task {self.name} is out of range; give {low} to {high}.")

    @property
    def kind(self) -> str:
        """The name without options."""
        return self.name.partition(":")[0]

    def questions(self) -> list[Question]:
        return [self.draw(index) for index in range(self.n)]

    def draw(self, index: int) -> Question:
        """The question at this index."""
        raise NotImplementedError(f"{type(self).__name__} draws no questions.")

    def question(self, index: int, prompt: str, record: Mapping[str, Any], target: str = "") -> Question:
        return Question(f"{self.name}/{self.seed}/{index}", prompt, record, target=target)

    def rng(self, index: int) -> random.Random:
        return random.Random(f"parallelbench {self.kind} {self.seed} {index}")


@dataclass(frozen=True)
class WaitingLine(Drawn):
    """A list of words to copy, reorder or edit: any operation of the zoo's lists, or of MORE_LISTS.

    `score` reads the answer as ParallelBench does: the last list in brackets, or all of it; quotes do not matter.
    `score_strict` wants the words with a comma and a space between, and nothing else.
    """

    length: int | None = None
    """Words in the list. None: 3, 4, 5 and 6 in turn, as ParallelBench has them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length is not None:
            self.within("length", 2, len(WORDS) - 1)

    def draw(self, index: int) -> Question:
        rng = self.rng(index)
        while True:  # until the bundled models were not trained on the question
            line = make_line(rng, self.kind, self.length or 3 + index % 4)
            if split_of(line.question) == "test":
                return self.question(index, line.question, asdict(line), ", ".join(line.expected))

    def score(self, question: Question, answer: str) -> dict[str, Any]:
        line, words = Line(**question.record), words_of(answer)
        return {"score": float(line.fits(words)), "score_strict": float(line.check(answer)), "extracted": words}


def words_of(text: str) -> list[str]:
    """The words of a list as models write it: the last one in brackets, or the whole text; quotes are dropped."""
    inner = text.rpartition("[")[2].partition("]")[0]
    return [word for part in inner.split(",") if (word := part.strip(" \n\t\"'."))]


@dataclass(frozen=True)
class LatinSquare(Drawn):
    """A square that holds every symbol once in each row and column; there are many, and any is right.

    `score` looks at the lines that hold every symbol, `score_strict` takes no other line.
    """

    size: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.within("size", 2, 9)

    def draw(self, index: int) -> Question:
        symbols = self.rng(index).sample(SYMBOLS, self.size)
        asked = f"Write a Latin square of size {self.size} with the symbols {', '.join(symbols)}. "
        asked += "Write one row per line, with commas between the symbols, and nothing else."
        return self.question(index, asked, {"symbols": symbols})

    def score(self, question: Question, answer: str) -> dict[str, Any]:
        symbols = sorted(question.record["symbols"])
        rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line.strip()]
        whole = [row for row in rows if sorted(row) == symbols][: len(symbols)]
        right = len(whole) == len(symbols) and all(sorted(column) == symbols for column in zip(*whole, strict=True))
        return {"score": float(right), "score_strict": float(right and whole == rows)}


@dataclass(frozen=True)
class Sudoku(Drawn):
    """A sudoku with one solution, drawn and scored by reasoning-gym: `mini_sudoku` of 4 × 4, `sudoku` of 9 × 9.

    `score` is 1 for the solution as asked for; `reward` is reasoning-gym's, which goes with the share of right cells.
    """

    metrics: tuple[str, ...] = ("score", "reward")
    settings: Mapping[str, Any] = field(default_factory=lambda: {"gen_length": 256})
    empty: int | None = None
    """Cells to fill in, fewer where one more would allow two solutions. None: 8 of 16 (ParallelBench), 30 of 81."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.empty is not None:
            self.within("empty", 0, 12 if self.kind == "mini_sudoku" else 50)

    def gym(self, size: int) -> Any:
        """reasoning-gym's generator. Raises DllmError where it is not installed."""
        try:
            import reasoning_gym
        except ImportError as error:
            raise DllmError(f"the task {self.name} needs reasoning-gym; pip install 'dllm-decode[eval]'.") from error
        empty = self.empty if self.empty is not None else 8 if self.kind == "mini_sudoku" else 30
        # Its puzzle i is drawn with seed + i: far apart, two seeds share none.
        seed = random.Random(f"parallelbench {self.kind} {self.seed}").getrandbits(48)
        return reasoning_gym.create_dataset(self.kind, size=size, seed=seed, min_empty=empty, max_empty=empty)

    def questions(self) -> list[Question]:
        drawn = ({key: entry[key] for key in ("question", "answer", "metadata")} for entry in self.gym(self.n))
        return [
            self.question(index, entry["question"].strip(), entry, entry["answer"]) for index, entry in enumerate(drawn)
        ]

    def score(self, question: Question, answer: str) -> dict[str, Any]:
        reward = float(self.gym(1).score_answer(answer.strip(), question.record))
        return {"score": float(reward == 1), "reward": reward}


@dataclass(frozen=True)
class WordsToSentence(Drawn):
    """A sentence that uses some words. Whether it is good English is not judged: only that all words are in it."""

    metrics: tuple[str, ...] = ("inclusion",)
    length: int = 3
    """Words to use."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.within("length", 1, len(WORDS))

    def draw(self, index: int) -> Question:
        words = self.rng(index).sample(WORDS, self.length)
        return self.question(index, f"Write one sentence that uses the words {', '.join(words)}.", {"words": words})

    def score(self, question: Question, answer: str) -> dict[str, Any]:
        found = set(re.findall(r"\w+", answer.lower()))
        return {"inclusion": float(found.issuperset(question.record["words"]))}


PARALLELBENCH: dict[str, type[Drawn]] = {
    **dict.fromkeys((*LISTS, *MORE_LISTS), WaitingLine),
    "latin_square": LatinSquare,
    "mini_sudoku": Sudoku,
    "sudoku": Sudoku,
    "words_to_sentence": WordsToSentence,
}
"""The tasks by name. `insert` is ParallelBench's insert_index; `remove` names the word that goes."""


def task(name: str) -> Task:
    return make(name)


def make(name: str, **options: Any) -> Drawn:
    """The task that "copy" or "copy:length=12,seed=3" stands for. Raises DllmError for what is not known."""
    kind, _, text = name.partition(":")
    if kind in PARALLELBENCH:
        own = {f.name for f in fields(PARALLELBENCH[kind])} - {f.name for f in fields(Task)}
        for option in (item.partition("=")[0].strip() for item in filter(None, text.split(","))):
            if option not in own:
                raise unknown(f"option of task {kind}", option, own)
    return dllm.options.make("task", PARALLELBENCH, {}, name, name=name, **options)


def problems(name: str, n: int, seed: int) -> list[Problem]:
    """The task's questions as problems that check themselves, by the headline metric."""
    made = make(name, n=n, seed=seed)
    return [Problem(name, made.kind, str(q.prompt), q.target, partial(right, made, q)) for q in made.questions()]


def right(made: Task, question: Question, text: str) -> bool:
    """Whether a text has the whole headline score."""
    return bool(made.score(question, text)[made.metrics[0]] == 1)
