"""Sums without words."""

import random
from functools import partial

from dllm.zoo.tasks.math import OPERATORS
from dllm.zoo.tasks.problem import Problem


def _same(answer: str, text: str) -> bool:
    return text.strip() == answer


def make_drill(rng: random.Random, level: float) -> Problem:
    """One to six sums, to be written out with their results: the arithmetic of `math` without its words."""
    high, lines = 20 + round(39 * level), list[str]()
    for _ in range(rng.randint(1, 6)):
        op, left, right = rng.choice("+-*/++-"), rng.randint(2, high), rng.randint(2, high)
        if op == "*":
            left, right = rng.sample((rng.randint(2, 6), rng.randint(2, 12)), 2)
        elif op == "/":
            left, right = 2 * (left // 2), 2
        elif op == "-":
            left = rng.randint(right + 1, 199 if rng.random() < 0.3 else right + high)
        elif rng.random() < 0.3:
            left = rng.randint(2, 199 - right)
        lines.append(f"{left} {op} {right} = {OPERATORS[op](left, right)}")
    question = "\n".join(line[: line.index("=") + 1] for line in lines)
    answer = "\n".join(lines) if len(lines) > 1 else lines[0].split("= ")[1]
    return Problem("drill", "drill", question, answer, partial(_same, answer))
