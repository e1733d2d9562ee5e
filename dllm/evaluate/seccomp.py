"""Which system calls the sandbox refuses: a seccomp filter (Linux's Documentation/userspace-api/seccomp_filter.rst)."""

import platform
import struct

from dllm.errors import DllmError

MACHINES = {
    # AUDIT_ARCH, clone; socket, add_key, request_key, keyctl, unshare, setns, perf_event_open, bpf, userfaultfd
    "x86_64": (0xC000003E, 56, (41, 248, 249, 250, 272, 308, 298, 321, 323)),
    "aarch64": (0xC00000B7, 220, (198, 217, 218, 219, 97, 268, 241, 280, 282)),
}
"""Numbers of system calls that lead around namespaces, as a virtual machine's sockets do, or deep into the kernel."""
IO_URING_SETUP, CLONE3 = 425, 435
NAMESPACES = 0x7E020000
"""The flags of clone that make namespaces of any kind."""
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
NUMBER, MACHINE, FIRST_ARGUMENT = 0, 4, 16
"""Offsets in the kernel's seccomp_data."""


def seccomp_filter(machine: str | None = None) -> bytes:
    """The filter's instructions for a machine, by default this one. Raises DllmError if the machine is unknown."""
    machine = machine or platform.machine()
    if machine not in MACHINES:
        known = " and ".join(MACHINES)
        raise DllmError(f"the sandbox knows the system calls of {known} only, and this is {machine}: score elsewhere.")
    arch, clone, calls = MACHINES[machine]
    refused = [*calls, IO_URING_SETUP]
    n = len(refused)
    code = [  # operation, instructions to skip if true and if false, operand
        (LOAD, 0, 0, MACHINE),
        (EQUAL, 1, 0, arch),
        (RETURN, 0, 0, KILL),  # The kernel's 32-bit doors have other numbers.
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, n + 6, 0, 0x40000000),  # x32, a third door
        (EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, ENOSYS),  # Its flags are in memory, where no filter can read them; libc falls back to clone.
        *((EQUAL, n + 3 - i, 0, number) for i, number in enumerate(refused)),
        (EQUAL, 0, 2, clone),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (ANY_BIT, 1, 0, NAMESPACES),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, EPERM),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in code)
