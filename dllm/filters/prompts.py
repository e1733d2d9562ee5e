"""Prompts to collect traces on: from a file, from a data set, or the training problems of bundled tasks."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dllm.errors import DllmError, unknown
from dllm.evaluate import data
from dllm.generation import Prompt
from dllm.weights import line
from dllm.zoo.tasks import TASKS, problems

COLUMNS = ("prompt", "question", "inputs", "instruction", "text", "messages")
"""Where prompts stand in the rows of files and data sets."""


def of_tasks(names: Sequence[str], n: int) -> list[Prompt]:
    """The first n training problems of each bundled task, as questions."""
    for name in names:
        if name not in TASKS:
            raise unknown("task", name, TASKS)
    return [problem.question for name in names for problem in problems(name, n, 0, "train")]


def of_file(path: str | Path) -> list[Prompt]:
    """A line each of a .txt file, or a row each of .jsonl, .jsonl.gz, .json, .parquet. Raises DllmError for none."""
    if Path(path).suffix != ".txt":
        return of_rows(data.read(path), str(path))
    try:
        found = [text for text in Path(path).expanduser().read_text(encoding="utf-8").splitlines() if text.strip()]
    except (OSError, ValueError) as error:
        raise DllmError(f"the prompts of {path} cannot be read ({line(error)}).") from error
    if not found:
        raise DllmError(f"{path} has no prompts in it; give one a line.")
    return list(found)


def of_dataset(name: str) -> list[Prompt]:
    """The rows of NAME, NAME:CONFIG or NAME:CONFIG:SPLIT through `datasets`; the split is train unless given."""
    hub, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    return of_rows(data.fetch(hub, config or None, split or "train", "give the prompts as a file"), name)


def of_rows(rows: Sequence[dict[str, Any]], where: str) -> list[Prompt]:
    """What stands in the first of COLUMNS that the rows have: text, messages, or token ids."""
    if not rows:
        raise DllmError(f"{where} has no rows; give another split or data set.")
    column = next((name for name in COLUMNS if name in rows[0]), None)
    if column is None:
        raise DllmError(f"the rows of {where} have {', '.join(rows[0])}, and none of {', '.join(COLUMNS)}; rename one.")
    lacking = [i for i, row in enumerate(rows) if not row.get(column)]
    if lacking:
        raise DllmError(f"row {lacking[0]} of {where} has no {column!r}.")
    return [row[column] for row in rows]


def chosen(prompts: Sequence[Prompt], n: int | None, seed: int) -> list[Prompt]:
    """In random order, each once, at most n of them."""
    once = list({str(prompt): prompt for prompt in prompts}.values())
    random.Random(seed).shuffle(once)
    return once[:n]
