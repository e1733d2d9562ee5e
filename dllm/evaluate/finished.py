"""A folder of finished work, one JSON line each, written as it is done: a kill loses nothing that was finished."""

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from dllm.errors import DllmError


def key_of(*what: Any) -> str:
    """The name of a piece of work: equal for equal work, on every machine."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:24]


class Finished:
    """What is finished, by key; a context manager, and with no folder a dictionary that nobody keeps."""

    def __init__(self, folder: str | Path | None, name: str = "rank_0") -> None:
        """Read what is finished, of every name, and go on with the file of this one.

        Raises DllmError for a folder that cannot be used.
        """
        self.found: dict[str, Any] = {}
        self.file = None
        if folder is None:
            return
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for path in sorted(Path(folder).glob("*.jsonl")):
                lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
                self.found |= dict(filter(None, map(entry, lines)))
            path = Path(folder) / f"{name}.jsonl"
            self.file = path.open("a", encoding="utf-8")
            if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                self.file.write("\n")  # the end of a line that a kill cut short
        except OSError as error:
            raise DllmError(
                f"{folder} cannot be used to keep finished work ({error.strerror}); give another folder."
            ) from error

    def __enter__(self) -> "Finished":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.file:
            self.file.close()

    def add(self, key: str, value: Any) -> None:
        """Keep a value, as JSON has it; it is in the file when this returns."""
        self.found[key] = value
        if self.file:
            self.file.write(json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n")
            self.file.flush()


def entry(line: str) -> tuple[str, Any] | None:
    """A line's key and value; None for an empty line and one that a kill cut short."""
    try:
        read = json.loads(line)
        return read["key"], read["value"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
