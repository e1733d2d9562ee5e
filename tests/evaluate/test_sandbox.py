"""Hostile programs meet walls, and the next program is scored as if nothing had happened.

Where a wall fails nothing here does harm: bombs are small, and what is attacked are decoys.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dllm.errors import DllmError
from dllm.evaluate import sandbox
from dllm.evaluate.sandbox import Limits, capabilities, run

WALLED = not any(how.startswith("none") for how in capabilities().values())
walled = pytest.mark.skipif(
    not WALLED, reason="this machine lets nobody make user namespaces: the sandbox refuses to run"
)
SHORT = Limits(cpu_seconds=1, wall_seconds=2.5, memory=2**28)


@pytest.fixture
def cage(tmp_path, monkeypatch):
    """A copy of cage.py whose path marks every process of this test's sandboxes."""
    copy = tmp_path / "marked_cage.py"
    shutil.copy(sandbox.CAGE, copy)
    monkeypatch.setattr(sandbox, "CAGE", copy)
    return copy


@pytest.fixture
def outcome(cage):
    """Runs a program; nothing of it may be left, and the next one must be scored."""

    def outcome(program, limits=SHORT):
        result = run(program, allow_code_execution=True, limits=limits)
        assert not processes_of(cage)
        assert run("assert 1 + 1 == 2", allow_code_execution=True).status == "passed"
        return result

    return outcome


def processes_of(cage):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            found += [entry.name] * (str(cage).encode() in command)
    return found


def contained(outcome, program, limits=SHORT):
    """Run a program that asserts itself that each of its attempts fails."""
    result = outcome(program, limits)
    assert result.status == "passed", result


# What is asked of a program


@walled
@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("x = 1", "passed", ""),
        ("assert 1 == 2, 'no'", "failed", "AssertionError: no"),
        ("def f(:", "failed", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("'\ud800'", "failed", "UnicodeEncodeError"),
        ("x = '\0'", "failed", "SyntaxError: source code string cannot contain null bytes"),
        ("raise Exception('\\x1b[2J\\nagain')", "failed", "Exception:  [2J again"),
        ("class Sly(Exception):\n    __str__ = None\nraise Sly", "failed", "it left before its end, with exit code 1"),
        ("import sys; sys.exit(0)", "failed", "SystemExit: 0"),
        ("import os; os._exit(0)", "failed", "it left before its end, with exit code 0"),
        ("import os; [os.write(fd, b'passed' * 9) for fd in (1, 2, 3)]; os._exit(0)", "failed", "passed"),
        ("import os; os.closerange(0, 100)", "failed", "it left before its end, with exit code 1"),
        ("import os; os.close(0); os.close(1); os.close(2)", "passed", ""),
        ("import ctypes; ctypes.string_at(0)", "killed", "SIGSEGV"),
        ("if __name__ == '__main__': raise SystemExit", "passed", ""),
    ],
)
def test_only_a_program_that_runs_to_its_end_passes(outcome, program, status, detail):
    result = outcome(program)
    assert (result.status, result.detail[: len(detail) or None]) == (status, detail)


@walled
def test_a_program_gets_nothing_to_read_and_its_text_is_kept(outcome):
    result = outcome("import sys; assert sys.stdin.read() == ''; print('out'); print('err', file=sys.stderr)")
    assert result.status == "passed" and sorted(result.output.split()) == ["err", "out"]


@walled
def test_the_same_program_meets_the_same_order_of_sets(outcome):
    assert len({outcome("print({'a', 'b', 'c', 'd', 'e'})").output for _ in range(3)}) == 1


# Limits


@walled
@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import signal\nfor n in signal.valid_signals() - {9, 19}: signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    ],
)
def test_a_loop_ends_with_its_cpu_time(outcome, program):
    result = outcome(program, Limits(cpu_seconds=1, wall_seconds=60.0))
    assert (result.status, result.detail) == ("timeout", "over 1 s of CPU time")


@walled
def test_sleep_ends_with_the_clock_even_where_the_program_wants_to_outlive_it(outcome):
    stay = """
import ctypes, os, time
ctypes.CDLL(None).prctl(1, 0)  # not to be told when the parent dies
if os.fork() == 0: os.setsid()
time.sleep(60)
"""
    result = outcome(stay, Limits(wall_seconds=1.5))
    assert (result.status, result.detail) == ("timeout", "over 1.5 s")


@walled
def test_a_fork_bomb_stops_at_the_limit(outcome):
    contained(
        outcome,
        """
import os, time
children = 0
try:
    while children < 100:
        if os.fork() == 0: time.sleep(60)
        children += 1
except BlockingIOError:
    pass
assert 0 < children < 8, children
""",
    )


@walled
def test_a_bomb_of_forks_that_fork_ends_with_its_first_process(outcome):
    contained(
        outcome,
        """
import os
for _ in range(8):
    try: os.fork()
    except OSError: pass
while os.getpid() > 1: pass
""",
    )


@walled
def test_a_memory_bomb_gets_an_exception(outcome):
    result = outcome("hoard = [bytearray(2**20) for _ in range(2000)]")
    assert (result.status, result.detail.strip(": ")) == ("failed", "MemoryError")


@walled
@pytest.mark.parametrize(
    "program", ["def f(): f()\nf()", "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()"]
)
def test_deep_recursion_fails(outcome, program):
    assert outcome(program).status != "passed"  # an exception, a crash, or still at it


@walled
def test_a_gigabyte_of_text_is_read_and_forgotten(outcome):
    loud = Limits(cpu_seconds=30, wall_seconds=120.0)
    result = outcome("import os\nfor _ in range(1024): os.write(1, b'x' * 2**20)", loud)
    # A pipe takes what fits of a write; the loop ends all the same.
    assert result.status == "passed" and result.output == "x" * loud.output


@walled
def test_files_are_bounded_one_by_one_and_together(outcome):
    contained(
        outcome,
        """
import errno, os
def refused(kinds, do):
    try: do()
    except OSError as error: assert error.errno in kinds, error
    else: raise AssertionError("not refused")
sparse = open("sparse", "wb")
refused({errno.EFBIG}, lambda: os.truncate("sparse", 10**12))
def fill():
    for i in range(100): open(str(i), "wb").write(bytes(2**20))
refused({errno.ENOSPC}, fill)
def many():
    for i in range(5000): open(f"n{i}", "wb").close()
refused({errno.ENOSPC}, many)
refused({errno.EMFILE}, lambda: [os.open("sparse", os.O_RDONLY) for _ in range(100)])
""",
    )


# What is outside


@walled
def test_nothing_outside_can_be_written_deleted_or_linked_to(outcome, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter").write_text("dear")
    monkeypatch.setenv("HOME", str(home))
    contained(
        outcome,
        f"""
import ctypes, os, pathlib, shutil, sys, tempfile
home = {str(home)!r}
assert os.environ["HOME"] != home and not os.path.exists(home)
os.symlink(home + "/letter", "link")
os.symlink("../../../../../../.." + home, "up")
def box():
    return {{os.path.realpath(p) for p in (".", tempfile.gettempdir())}}
assert box() == {{"/box"}}
open("mine", "w").write("allowed")
for attempt in (
    lambda: open(home + "/letter", "w"),
    lambda: open("link", "w"),
    lambda: open("up/letter", "w"),
    lambda: os.remove(home + "/letter"),
    lambda: os.makedirs(home),
    lambda: open("/tmp/x", "w"),
    lambda: open("/usr/x", "w"),
    lambda: open("/x", "w"),
    lambda: open(sys.prefix + "/x", "w"),
    lambda: open(os.__file__, "a"),
    lambda: os.chmod(os.__file__, 0o777),
    lambda: os.utime(os.__file__),
    lambda: os.link(os.__file__, "/box/os.py"),
    lambda: os.chroot("."),
    lambda: open("/proc/1/root" + home + "/letter", "w"),
    lambda: open("/etc/passwd"),
    lambda: os.mknod("disk", 0o060666, os.makedev(8, 0)),
):
    try: attempt()
    except OSError: pass
    else: raise AssertionError(attempt.__code__.co_firstlineno)
libc = ctypes.CDLL(None)
assert libc.mount(b"none", b"/box", b"tmpfs", 0, None) == -1
assert libc.umount2(b"/usr", 2) == -1
assert libc.unshare(0x10000000) == -1 and libc.unshare(0x20000) == -1
shutil.rmtree(home, ignore_errors=True)
shutil.rmtree("up", ignore_errors=True)
""",
    )
    assert (home / "letter").read_text() == "dear"


@walled
def test_no_network_not_even_to_this_machine(outcome):
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as local:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        local.bind(f"\0dllm-test-{os.getpid()}")
        local.listen()
        contained(
            outcome,
            f"""
import socket
for family, address in (
    (socket.AF_INET, ("127.0.0.1", {tcp.getsockname()[1]})),
    (socket.AF_INET, ("1.1.1.1", 53)),
    (socket.AF_INET6, ("::1", 53)),
    (socket.AF_UNIX, "\\0dllm-test-{os.getpid()}"),
    (socket.AF_VSOCK, (2, 1)),
):
    try: socket.socket(family).connect(address)
    except OSError: pass
    else: raise AssertionError(address)
try: socket.getaddrinfo("localhost", 80, family=socket.AF_INET6)
except OSError: pass
""",
        )
        tcp.settimeout(0)
        with pytest.raises(BlockingIOError):
            tcp.accept()


@walled
def test_neither_the_environment_nor_open_files_nor_other_processes_are_seen(outcome, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN_OF_A_USER", "secret")
    with open(tmp_path / "open", "w+") as file:
        os.set_inheritable(file.fileno(), True)
        contained(
            outcome,
            f"""
import os
assert "TOKEN_OF_A_USER" not in os.environ and not os.path.exists("/proc")
for path in ("/proc/{os.getpid()}/environ", "/proc/self/environ", "/proc/1/environ"):
    try: open(path)
    except FileNotFoundError: pass
    else: raise AssertionError(path)
assert os.getpid() == 1 and os.getppid() == 0 and os.getuid() == 65534 and os.getgroups() in ([], [65534])
for fd in range(4, 1000):
    try: os.fstat(fd)
    except OSError: pass
    else: raise AssertionError(fd)
""",
        )


@walled
def test_neither_the_parent_nor_anybody_else_can_be_signalled_or_traced(outcome):
    got = []
    before = signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
    decoy = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        contained(
            outcome,
            f"""
import ctypes, os, signal
for attempt in (
    lambda: os.kill({os.getpid()}, signal.SIGUSR1),
    lambda: os.killpg({os.getpgrp()}, 0),
    lambda: os.kill({decoy.pid}, signal.SIGKILL),
    lambda: os.kill(-1, 0),
    lambda: os.pidfd_open({decoy.pid}),
):
    try: attempt()
    except OSError: pass
    else: raise AssertionError(attempt.__code__.co_firstlineno)
assert ctypes.CDLL(None).ptrace(16, {decoy.pid}, None, None) == -1
os.kill(os.getppid(), signal.SIGUSR1 * 0)  # process 0: its own group
""",
        )
        assert decoy.poll() is None and not got
    finally:
        signal.signal(signal.SIGUSR1, before)
        decoy.communicate()


@walled
def test_a_daemon_ends_with_the_program_that_left_it(outcome):
    daemon = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(60)
    os._exit(0)
os.wait()
"""
    result = outcome(daemon, Limits(wall_seconds=50.0))
    assert result.status == "passed" and result.seconds < 50


@walled
def test_when_the_evaluation_is_killed_so_is_the_program(cage):
    program = "import ctypes, time; ctypes.CDLL(None).prctl(1, 0); time.sleep(60)"
    script = f"""
from pathlib import Path
from dllm.evaluate import sandbox
sandbox.CAGE = Path({str(cage)!r})
sandbox.run({program!r}, allow_code_execution=True, limits=sandbox.Limits(wall_seconds=50))
"""
    root = str(Path(sandbox.__file__).parent.parent.parent)
    evaluation = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": root})
    until(lambda: len(processes_of(cage)) == 3)  # the evaluation names the cage, too
    evaluation.kill()
    evaluation.wait()
    until(lambda: not processes_of(cage))


def until(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for 30 s")


# Refusals


def test_nothing_runs_without_permission():
    with pytest.raises(DllmError, match="allow-code-execution"):
        run("print(1)")


def test_nothing_runs_where_the_walls_cannot_be_built(tmp_path, monkeypatch):
    """As where unshare is forbidden: what runs is the real set-up with a system call that fails."""
    source = sandbox.CAGE.read_text()
    for step in ('call("unshare", NEWUSER', 'call("pivot_root", b"."', 'call("capset", (ctypes'):
        assert step in source
        (tmp_path / "cage.py").write_text(
            source.replace(step, 'call("access", b"/nonexistent", 0) or call("access", b"/"')
        )
        monkeypatch.setattr(sandbox, "CAGE", tmp_path / "cage.py")
        with pytest.raises(DllmError, match="nothing was run") as refused:
            run("print(1)", allow_code_execution=True)
        assert "\n" not in str(refused.value)
        assert all(how.startswith("none: nothing was run") for how in capabilities().values())


def test_nothing_runs_on_other_systems_or_processors(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(DllmError, match="riscv64"):
        run("", allow_code_execution=True)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(DllmError, match="needs Linux, and this is darwin"):
        run("", allow_code_execution=True)


def test_a_sandbox_that_vanishes_is_no_verdict_on_the_machine(tmp_path, monkeypatch):
    (tmp_path / "cage.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(sandbox, "CAGE", tmp_path / "cage.py")
    assert run("x" * 10**6, allow_code_execution=True).status == "killed"


@pytest.mark.parametrize("limit", json.loads('[{"memory": 0}, {"cpu_seconds": -1}, {"wall_seconds": 0.0}]'))
def test_limits_leave_room(limit):
    with pytest.raises(DllmError, match="leaves a program nothing"):
        Limits(**limit)
