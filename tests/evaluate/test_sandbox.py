"""Hostile programs meet walls, and the next program is scored as if nothing had happened.

Where a wall fails nothing here does harm: bombs are small, and what is attacked are decoys.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from dllm.errors import DllmError
from dllm.evaluate import sandbox
from dllm.evaluate.sandbox import Limits, capabilities, run
from dllm.evaluate.seccomp import seccomp_filter

UNSHARE = "NEWUSER | NEWPID | NEWNS | NEWNET | NEWIPC"
LANDLOCK = "LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT, LANDLOCK_VERSION = 444, 445, 446, 1"
REFUSED_BY_KERNEL = {
    "namespaces": (UNSHARE, "1"),
    "pivot": ('call("pivot_root", b".", b".")', 'call("pivot_root", b"/nowhere", b".")'),
    "landlock": (LANDLOCK, LANDLOCK.replace("444", "9999")),
    "python": ("os.access(os.__file__, os.R_OK)", 'os.access("/nowhere", os.R_OK)'),
    "seccomp": ('call("prctl", PR_SET_SECCOMP, 2,', 'call("prctl", PR_SET_SECCOMP, 99,'),
}
"""What to change in cage.py, so that the kernel refuses the one or the other, as other kernels do."""
SHORT = Limits(cpu_seconds=2, wall_seconds=60.0, memory=2**28)


def make_cage(path, *refused):
    """A copy of cage.py whose path marks every process of the sandboxes that run it."""
    source = sandbox.CAGE.read_text()
    for old, new in (REFUSED_BY_KERNEL[name] for name in refused):
        assert source.count(old) == 1
        source = source.replace(old, new)
    path.write_text(source)
    return path


@pytest.fixture(scope="module", params=["namespaces", "landlock"])
def walls(request, tmp_path_factory):
    """Every test meets both kinds of walls, where the machine has them."""
    request.getfixturevalue("walled")
    refused = ["namespaces"] if request.param == "landlock" else []
    made = make_cage(tmp_path_factory.mktemp(request.param) / "marked_cage.py", *refused)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "CAGE", made)
        try:
            if run("", allow_code_execution=True).walls != request.param:
                pytest.skip("this machine lets nobody make user namespaces")
        except DllmError:
            pytest.skip("this machine has no Landlock")
    return made


@pytest.fixture
def cage(walls, monkeypatch):
    monkeypatch.setattr(sandbox, "CAGE", walls)
    return walls


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


def test_a_program_gets_nothing_to_read_and_its_text_is_kept(outcome):
    result = outcome("import sys; assert sys.stdin.read() == ''; print('out'); print('err', file=sys.stderr)")
    assert result.status == "passed" and sorted(result.output.split()) == ["err", "out"]


def test_the_same_program_meets_the_same_order_of_sets(outcome):
    assert len({outcome("print({'a', 'b', 'c', 'd', 'e'})").output for _ in range(3)}) == 1


# Limits


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


def test_sleep_ends_with_the_clock(outcome):
    result = outcome("import time; time.sleep(60)", Limits(wall_seconds=1.5))
    assert (result.status, result.detail) == ("timeout", "over 1.5 s")


@pytest.mark.parametrize(
    "attempt",
    [
        "os.fork()",
        "os.forkpty()",
        "os.posix_spawn('/bin/sh', ['sh'], {})",
        "os.execv('/bin/sh', ['sh', '-c', 'exit'])",
        "subprocess.run(['true'])",
        "multiprocessing.Process(target=print).start()",
    ],
)
def test_no_process_is_started(outcome, attempt):
    """So there are no fork bombs, and no daemons."""
    contained(outcome, f"import multiprocessing, os, subprocess\ntry: {attempt}\nexcept OSError: pass\nelse: 1 / 0")


def test_threads_are_bounded_by_memory_and_end_with_the_program(outcome):
    contained(
        outcome,
        """
import threading, time
try:
    for started in range(10000): threading.Thread(target=time.sleep, args=(60,)).start()
except RuntimeError: pass
assert 1 <= started < 1000, started
""",
    )


def test_small_stacks_do_not_make_room_for_more_threads(outcome):
    """With Landlock the kernel has no count of a program's own threads."""
    if outcome("").walls == "landlock":
        pytest.skip("threads are counted in namespaces")
    contained(
        outcome,
        """
import os, threading, time
for attempt in (os.setuid, lambda uid: os.setreuid(uid, uid), lambda uid: os.setresuid(uid, uid, uid)):
    try: attempt(os.geteuid())
    except PermissionError: pass
    else: raise AssertionError("another name")
threading.stack_size(2**15)
try:
    for started in range(1000): threading.Thread(target=time.sleep, args=(60,)).start()
except RuntimeError: pass
assert 8 <= started < 64, started
""",
    )


def test_a_memory_bomb_gets_an_exception(outcome):
    result = outcome("hoard = [bytearray(2**20) for _ in range(2000)]")
    assert (result.status, result.detail.strip(": ")) == ("failed", "MemoryError")


@pytest.mark.parametrize(
    "program", ["def f(): f()\nf()", "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()"]
)
def test_deep_recursion_fails(outcome, program):
    assert outcome(program).status != "passed"  # an exception, a crash, or still at it


def test_a_gigabyte_of_text_is_read_and_forgotten(outcome):
    loud = Limits(cpu_seconds=30, wall_seconds=120.0)
    result = outcome("import os\nfor _ in range(1024): os.write(1, b'x' * 2**20)", loud)
    # A pipe takes what fits of a write; the loop ends all the same.
    assert result.status == "passed" and result.output == "x" * loud.output


def test_files_are_bounded_one_by_one_and_together(outcome):
    """With Landlock no file can be written at all."""
    contained(
        outcome,
        """
import errno, os
def refused(kinds, do):
    try: do()
    except OSError as error: assert error.errno in kinds, error
    else: raise AssertionError("not refused")
boxed = os.path.exists("/box")
def sparse():
    open("sparse", "wb").truncate(10**12)
def fill():
    for i in range(100): open(str(i), "wb").write(bytes(2**20))
def many():
    for i in range(5000): open(f"n{i}", "wb").close()
refused({errno.EFBIG if boxed else errno.EACCES}, sparse)
refused({errno.ENOSPC if boxed else errno.EACCES}, fill)
refused({errno.ENOSPC if boxed else errno.EACCES}, many)
refused({errno.EMFILE}, lambda: [os.open("/dev/null", os.O_RDONLY) for _ in range(100)])
""",
    )


# What is outside


def test_nothing_outside_can_be_written_deleted_or_linked_to(outcome, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter").write_text("dear")
    monkeypatch.setenv("HOME", str(home))
    contained(
        outcome,
        f"""
import ctypes, os, pathlib, shutil, sys, tempfile
home, boxed = {str(home)!r}, os.path.exists("/box")
assert os.environ["HOME"] != home and os.path.exists(home) is not boxed
if boxed:
    os.symlink(home + "/letter", "link")
    os.symlink("../../../../../../.." + home, "up")
    open("mine", "w").write("allowed")
    assert {{os.path.realpath(p) for p in (".", tempfile.gettempdir(), "mine/..")}} == {{"/box"}}
for attempt in (
    lambda: open(home + "/letter"),
    lambda: open(home + "/letter", "w"),
    lambda: os.truncate(home + "/letter", 0),
    lambda: os.chmod(home, 0),
    lambda: os.utime(home + "/letter"),
    lambda: os.rename(home, home + "2"),
    lambda: os.symlink("/", home + "/link"),
    lambda: os.listdir(home),
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


def test_neither_the_environment_nor_open_files_nor_other_processes_are_seen(outcome, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN_OF_A_USER", "secret")
    with open(tmp_path / "open", "w+") as file:
        os.set_inheritable(file.fileno(), True)
        contained(
            outcome,
            f"""
import os
assert "TOKEN_OF_A_USER" not in os.environ
for path in ("{os.getpid()}", "self", "thread-self", "1", str(os.getppid())):
    for name in ("environ", "cmdline", "maps", "mem", "root", "" if "self" in path else "fd/0"):
        try: os.listdir(f"/proc/{{path}}/root") if name == "root" else open(f"/proc/{{path}}/{{name}}")
        except OSError: pass
        else: raise AssertionError((path, name))
for fd in range(4, 1000):
    try: os.fstat(fd)
    except OSError: pass
    else: raise AssertionError(fd)
""",
        )


def test_neither_the_parent_nor_anybody_else_can_be_signalled_or_traced(outcome):
    got = []
    before = signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
    decoy = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        contained(
            outcome,
            f"""
import ctypes, fcntl, os, resource, signal
for attempt in (
    lambda: os.kill({os.getpid()}, signal.SIGUSR1),
    lambda: os.kill(os.getppid() or {os.getpid()}, 0),
    lambda: os.killpg({os.getpgrp()}, 0),
    lambda: os.kill({decoy.pid}, signal.SIGKILL),
    lambda: os.kill(-1, 0),
    lambda: os.pidfd_open({decoy.pid}),
    lambda: os.setpriority(os.PRIO_PROCESS, {decoy.pid}, 19),
    lambda: os.sched_setaffinity({decoy.pid}, [0]),
    lambda: resource.prlimit({decoy.pid}, resource.RLIMIT_CPU),
    lambda: fcntl.fcntl(1, fcntl.F_SETOWN, {decoy.pid}),
):
    try: attempt()
    except OSError: pass
    else: raise AssertionError(attempt.__code__.co_firstlineno)
libc = ctypes.CDLL(None)
assert libc.ptrace(16, {decoy.pid}, None, None) == -1 and libc.shmget(0, 4096, 0o1600) == -1
assert libc.prctl(1, 0, 0, 0, 0) == -1  # not to hear of the parent's death
""",
        )
        assert decoy.poll() is None and not got
    finally:
        signal.signal(signal.SIGUSR1, before)
        decoy.communicate()


def test_when_the_evaluation_is_killed_so_is_the_program(cage):
    request = {"program": "import time; time.sleep(60)", "limits": asdict(Limits()), "seccomp": seccomp_filter().hex()}
    script = f"""
import subprocess, sys, time
sandbox = subprocess.Popen([sys.executable, {str(cage)!r}], stdin=subprocess.PIPE)
sandbox.stdin.write({json.dumps(request)!r}.encode() + b"\\n")
sandbox.stdin.flush()
time.sleep(60)
"""
    evaluation = subprocess.Popen([sys.executable, "-c", script])
    until(lambda: len(processes_of(cage)) == 3)  # the evaluation names the cage, too
    evaluation.kill()
    evaluation.wait()
    until(lambda: not processes_of(cage))


def until(condition):
    for _ in range(12000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for 120 s")


# Refusals


def test_nothing_runs_without_permission():
    with pytest.raises(DllmError, match="allow-code-execution"):
        run("print(1)")


@pytest.mark.parametrize("refused", [("namespaces", "landlock"), ("seccomp",), ("python",)])
def test_nothing_runs_where_the_walls_cannot_be_built(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "CAGE", make_cage(tmp_path / "cage.py", *refused))
    with pytest.raises(DllmError, match="nothing was run") as error:
        run("print(1)", allow_code_execution=True)
    assert "\n" not in str(error.value)
    assert all(how.startswith("none: nothing was run") for how in capabilities().values())


def test_a_wall_that_fails_half_built_gives_way_to_the_other_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "CAGE", make_cage(tmp_path / "cage.py", "pivot"))
    try:
        assert run("import math", allow_code_execution=True).walls == "landlock"
        assert "Landlock" in capabilities()["files"]
    except DllmError:
        pytest.skip("this machine has no Landlock")


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
