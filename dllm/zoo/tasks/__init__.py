"""Procedural tasks with exact checkers: word problems, waiting lines, small functions and sums.

`answer` is one sample of many right answers: the phrasing, the order of the steps and every free choice are drawn, so
that only an answer whose tokens agree with each other is right. A hash of the question parts train from test.
To add a task: a file beside these whose function makes a Problem, and an entry here.
"""

import hashlib
import random
from collections.abc import Callable

from dllm.errors import DllmError, unknown
from dllm.zoo.tasks.code import make_code
from dllm.zoo.tasks.drill import make_drill
from dllm.zoo.tasks.lists import make_list
from dllm.zoo.tasks.math import make_math
from dllm.zoo.tasks.problem import Problem

SPLITS = ("train", "test")
TASKS: dict[str, Callable[[random.Random, float], Problem]] = {
    "math": make_math,
    "lists": make_list,
    "code": make_code,
    "drill": make_drill,
}


def split_of(question: str) -> str:
    """The split a question belongs to: one in eight is a test question."""
    return "test" if hashlib.blake2b(question.encode(), digest_size=1).digest()[0] < 32 else "train"


def make(task: str, seed: int, index: int, split: str = "train", level: float = 1.0) -> Problem:
    """The problem at this seed and index, the same on every call; level 0 draws only the easiest, 1 draws all.

    Raises DllmError if the task, the split or the level is not known.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if not 0 <= level <= 1:
        raise DllmError(f"level={level} is out of range; give a value from 0 (easiest) to 1 (all).")
    rng = random.Random(f"{task} {seed} {index} {split}")
    while True:
        problem = TASKS[task](rng, level)
        if split_of(problem.question) == split:
            return problem


def problems(task: str, n: int, seed: int = 0, split: str = "test") -> list[Problem]:
    return [make(task, seed, index, split) for index in range(n)]


def correct(problem: Problem, text: str) -> bool:
    """Whether the text answers the problem: the final number, the list, or one of the accepted bodies."""
    return problem.check(text)


def consistent(problem: Problem, text: str) -> bool:
    """Whether the whole text is right, every line of a solution included; the same as `correct` outside math."""
    return (problem.grammar or problem.check)(text)


__all__ = ["SPLITS", "TASKS", "Problem", "consistent", "correct", "make", "problems", "split_of"]
