"""What is taken for code in an answer."""

import ast
import random

import pytest

from dllm.evaluate.sanitize import longest_code, parsed, sanitize

NEEDED = """import os
from math import sqrt
LIMIT = 3
def helper(x):
    return min(x, LIMIT)
class Pair:
    pass
def f(x):
    return Pair, helper(x)"""


def test_what_the_function_leads_to_stays_and_the_rest_goes():
    others = "print(f(2))\nunused = 1\ndef g(x):\n    return x\nassert f(1)\nif __name__ == '__main__':\n    f(3)\n"
    assert sanitize(NEEDED + "\n" + others, "f") == NEEDED


def test_prose_around_the_code_is_left_out():
    assert sanitize(f"Sure, here it is:\n\n{NEEDED}\n\nThis doesn't do (anything) else.", "f") == NEEDED


def test_a_signature_without_a_body_does_not_hide_the_answer_below_it():
    problem, answer = 'def f(x):\n    """Add 1."""\n', "def f(x):\n    return x + 1"
    assert sanitize(f"{problem}\n{answer}", "f") == answer


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("def f(x):\n    return 1\ndef f(x):\n    return 2", "def f(x):\n    return 1"),
        ("@cache\ndef f(x):\n    return 1\nimport a", "import a"),
        ("from __future__ import annotations\nimport a", "import a"),
        ("async def f():\n    return 1\nx = 2", "async def f():\n    return 1"),
        ("a: int = 1\nb, c = 1, 2\ndef f():\n    return a + b", "a: int = 1\ndef f():\n    return a + b"),
        ("x = 1; import a; y = 2\ndef f(): return x", "import a\nx = 1\ndef f(): return x"),
        ("def f():\n    return '\\d' # ü\nprint('ü')", "def f():\n    return '\\d'"),
        ("x = 1\nprint(x)", "x = 1\nprint(x)"),
        ("No code, sorry.", "No code, sorry."),
        ("", ""),
    ],
)
def test_edges_are_those_of_evalplus(text, kept):
    assert sanitize(text, "f") == kept


def test_nothing_that_a_model_writes_raises():
    for text in ("x = " + "(" * 500, "x = " + "-" * 10**5 + "1", "x\0y", "\ud800", "def f(:\n" * 30):
        assert isinstance(sanitize(text, "f"), str)
    assert parsed("x = " + "(" * 10**4) is None


def slow_longest_code(text):
    """Try every pair of lines."""
    lines, best, most = text.split("\n"), text.split("\n")[0], 0
    for start in range(len(lines)):
        for end in range(start + 2, len(lines) + 1):
            count = sum(bool(line.strip()) for line in lines[start:end])
            if count > most and parsed("\n".join(lines[start:end])):
                best, most = "\n".join(lines[start:end]), count
    return best


def test_the_longest_code_is_that_of_trying_all():
    pieces = [*NEEDED.split("\n"), "", "    ", "prose it is", "x = (", ")", '"""', "try:", "    return 1", "else:"]
    chance = random.Random(0)
    for _ in range(300):
        text = "\n".join(chance.choices(pieces, k=chance.randint(1, 14)))
        fast, slow = longest_code(text), slow_longest_code(text)
        assert fast.rstrip() == slow.rstrip()
        assert not parsed(slow) or ast.dump(ast.parse(fast)) == ast.dump(ast.parse(slow))
