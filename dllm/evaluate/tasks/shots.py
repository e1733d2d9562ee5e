"""The worked examples of GSM8K's protocols: for every row of the test set those that stand before its question.

Each function takes how many there are, the rows, and a file to read them from instead of the usual place. The texts are
their authors', and are read from where these published them.
"""

import ast
import random
from collections.abc import Sequence
from pathlib import Path

from dllm.errors import DllmError
from dllm.evaluate.data import Row, gsm8k, installed

Example = tuple[str, str]
"""What is asked, and the worked answer."""
OPENCOMPASS = "Question: {}\nLet's think step by step\nAnswer:"
SEED = 1234
"""Of lm-evaluation-harness's draw."""


def drawn(n: int, rows: Sequence[Row], path: Path | None) -> list[list[Example]]:
    """n training rows for every question, drawn for each in the test set's order, as lm-evaluation-harness does."""
    train = [(row["question"], row["answer"]) for row in gsm8k("train", path)]
    draw = random.Random(SEED)
    return [draw.sample(train, n) for _ in rows]


def chain_of_thought(n: int, rows: Sequence[Row], path: Path | None) -> list[list[Example]]:
    """The eight exemplars of arXiv:2201.11903, which the package lm_eval holds."""
    import yaml

    path = path or installed("lm_eval", "tasks/gsm8k/gsm8k-cot.yaml")
    if path is None:
        raise DllmError(
            "this protocol's examples are those of lm-evaluation-harness; install it with pip install "
            "'dllm-decode[eval]', or give --shots with its gsm8k-cot.yaml."
        )
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))["fewshot_config"]["samples"]
        examples = [(str(one["question"]), str(one["target"])) for one in found][:n]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DllmError(f"{path} is not lm-evaluation-harness's gsm8k-cot.yaml ({error!r}).") from error
    return [examples] * len(rows)


def opencompass(n: int, rows: Sequence[Row], path: Path | None) -> list[list[Example]]:
    """The four fixed examples in OpenCompass's config, which is read and not run."""
    name = "gsm8k_gen_1d7fe4.py"
    path = path or installed("opencompass", f"configs/datasets/gsm8k/{name}")
    if path is None:
        raise DllmError(f"this protocol's examples are those of OpenCompass; give --shots with its {name}.")
    try:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    except (OSError, ValueError, SyntaxError) as error:
        raise DllmError(f"{path} cannot be read as OpenCompass's {name} ({error}).") from error
    turns: list[tuple[str, str]] = []
    for call in sorted(calls, key=lambda call: call.lineno):
        given = {word.arg: str(word.value.value) for word in call.keywords if isinstance(word.value, ast.Constant)}
        if {"role", "prompt"} <= given.keys():
            turns.append((given["role"], given["prompt"]))
    before, after = OPENCOMPASS.split("{}")
    roles, asked, answers = [role for role, _ in turns], [t for _, t in turns[::2]], [t for _, t in turns[1::2]]
    if roles != ["HUMAN", "BOT"] * n + ["HUMAN"] or not all(t.startswith(before) and t.endswith(after) for t in asked):
        raise DllmError(f"{path} does not hold the {n} examples of OpenCompass's {name}.")
    examples = [(t.removeprefix(before).removesuffix(after), a) for t, a in zip(asked, answers, strict=False)]
    return [examples] * len(rows)
