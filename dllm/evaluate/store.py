"""The files of an evaluation: answers as they come, kept over a kill, and the final pair when all are there.

OUTPUT/MODEL/unfinished_TASK.json               what the run in progress is made of; it goes when the run is done
OUTPUT/MODEL/samples_TASK_unfinished-RANK.jsonl a line for every finished sample, written at once
OUTPUT/MODEL/samples_TASK_DATE.jsonl            all samples, in the order of the questions
OUTPUT/MODEL/results_DATE.json                  scores, settings, conditions; written last
"""

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from dllm.errors import DllmError

Sample = dict[str, Any]
"""A line of the samples file."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems without hard links say to one."""


def replace_file(path: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def dump(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


class Store:
    """One task of one model in an output folder.

    facts: all that the answers depend on, as JSON has it. A run in progress goes on only under the same facts.
    """

    def __init__(self, output: str | Path, model: str, task: str, facts: dict[str, Any]) -> None:
        self.folder = Path(output).expanduser() / re.sub(r'["<>:/|\\?*\[\]]+', "__", model)
        self.task, self.facts = task, json.loads(dump(facts))
        self.head = self.folder / f"unfinished_{task}.json"
        self.date = ""

    def finished(self) -> Path | None:
        """The results file of a run under the same facts that is done."""
        for path in sorted(self.folder.glob("results_*.json"), reverse=True):
            try:
                results = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:  # of another program
                continue
            if isinstance(results, dict) and results.get("facts") == self.facts:
                return path
        return None

    def begin(self) -> None:
        """Go on with the run in progress, or begin one.

        Raises DllmError if the one in progress has other facts, and if the folder cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.claim()
        except OSError as error:
            raise DllmError(f"{self.folder} cannot be written to ({error.strerror}); give another --output.") from error
        head = json.loads(self.head.read_text(encoding="utf-8"))
        if head["facts"] != self.facts and not self.samples():  # nothing is lost
            self.head.unlink()
            self.begin()
            return
        if head["facts"] != self.facts:
            then, now = differing(head["facts"], self.facts)
            raise DllmError(
                f"the run begun in {self.folder} has {then}, this one {now}; repeat its options, give another "
                f"--output, or remove {self.head.name} and the unfinished samples beside it."
            )
        self.date = head["date"]

    def claim(self) -> None:
        """Write the head unless it is there. One process makes the link, whole, however many ranks begin at once."""
        date = datetime.now().isoformat().replace(":", "-")
        temporary = self.head.with_name(f".{self.head.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(dump({"date": date, "facts": self.facts}, 1), encoding="utf-8")
            with suppress(FileExistsError):
                os.link(temporary, self.head)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if not self.head.exists():  # of two at once the later stays; two runs are kept apart by `appending`
                os.replace(temporary, self.head)
        finally:
            temporary.unlink(missing_ok=True)

    def partial(self, rank: int) -> Path:
        return self.folder / f"samples_{self.task}_unfinished-{rank}.jsonl"

    def partials(self) -> list[Path]:
        """The files of all ranks."""
        return [*self.folder.glob(f"samples_{self.task}_unfinished-*.jsonl")]

    def samples(self) -> dict[int, Sample]:
        """The finished samples of the run in progress by `doc_id`, of all ranks. A damaged line is no sample."""
        found: dict[int, Sample] = {}
        for path in self.partials():
            for line in path.read_bytes().split(b"\n")[:-1]:
                with suppress(ValueError, TypeError, KeyError):
                    sample = json.loads(line)
                    found[sample["doc_id"]] = sample
        return found

    def sizes(self) -> dict[Path, tuple[int, int]]:
        """Bytes and time of change of the ranks' files: while these are the same, so are the samples."""
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in self.partials()}

    @contextmanager
    def appending(self, rank: int) -> Iterator[IO[bytes]]:
        """The rank's file, open at its end, a torn last line cut off. Raises DllmError if another process has it."""
        with self.partial(rank).open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DllmError(
                    f"another process is writing {file.name}; wait for it, or give another --output."
                ) from error
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            yield file

    def finish(self, samples: Iterable[Sample], results: dict[str, Any]) -> Path:
        """Write the final files, then remove those of the run in progress. Returns the path of the results."""
        path = self.folder / f"results_{self.date}.json"
        lines = "".join(dump(sample) + "\n" for sample in samples)
        replace_file(self.folder / f"samples_{self.task}_{self.date}.jsonl", lines)
        replace_file(path, dump(results | {"facts": self.facts}, 2))
        self.head.unlink()
        for partial in self.partials():
            partial.unlink()
        return path


def append(file: IO[bytes], sample: Sample) -> None:
    """Write a sample so that a kill from now on does not lose it."""
    file.write(dump(sample).encode() + b"\n")
    file.flush()


def differing(then: dict[str, Any], now: dict[str, Any]) -> tuple[str, str]:
    """The first facts that differ, with their values: "gen_length 64" and "gen_length 32"."""
    name = next(name for name in {**then, **now} if then.get(name) != now.get(name))
    return tuple(f"{name} {dump(facts.get(name))}" for facts in (then, now))  # type: ignore[return-value]
