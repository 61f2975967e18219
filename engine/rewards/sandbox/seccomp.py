"""A filter that lets a program make no system calls but those of :mod:`.syscalls`: no socket, no process.

Needs no privilege; it cannot be taken off again. Only ctypes and the kernel are used.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator

from .syscalls import NUMBERS

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> its column of NUMBERS, and its AUDIT_ARCH value (linux/audit.h)."""
X32 = 0x40000000
"""The bit that marks calls of x86_64's 32-bit interface, which have other numbers."""
LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
"""Codes of classic BPF instructions on words (linux/bpf_common.h)."""
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16
"""Offsets in struct seccomp_data (linux/seccomp.h)."""
NO_NEW_PRIVS, SET_SECCOMP, FILTER_MODE = 38, 22, 2
ALL = 0xFFFFFFFF

CLONE_THREAD = 0x00010000
TRUNCATES = os.O_TRUNC | os.O_ACCMODE
FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)
"""Duplicate, flags, locks: none that names another process for signals."""
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: none that types into a terminal."""
UNIX = 1

Test = tuple[int, int, int, bool]
"""Word (two an argument, low first), mask, value; whether the masked word must be the value, or must not."""
Instruction = tuple[int, int, int, int]


def conditions() -> dict[str, list[list[Test]]]:
    """Call -> alternatives, each a list of tests of which all must hold. No alternative: not implemented."""
    itself = os.getpid()
    return {
        "openat": [
            [(4, TRUNCATES, os.O_TRUNC, False)]
        ],  # old Landlock does not see O_TRUNC of a read-only open
        "open": [[(2, TRUNCATES, os.O_TRUNC, False)]],
        "clone": [[(0, CLONE_THREAD, CLONE_THREAD, True)]],
        "kill": [[(0, ALL, itself, True)]],
        "tgkill": [[(0, ALL, itself, True)]],
        "prlimit64": [[(0, ALL, 0, True), (4, ALL, 0, True), (5, ALL, 0, True)]],  # asks, sets nothing
        "fcntl": [[(2, ALL, command, True)] for command in FCNTL],
        "ioctl": [[(2, ALL, command, True)] for command in IOCTL],
        "socketpair": [[(0, ALL, UNIX, True)]],
        "clone3": [],  # its flags lie in memory, where no filter can look; C libraries fall back to clone
        "openat2": [],
    }


def program(machine: str) -> bytes:
    """The filter as struct sock_filter[]. Raises OSError on a machine whose numbers are not known."""
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"system calls of {machine} are not known, only of x86_64 and aarch64")
    column, architecture = ARCHITECTURES[machine]
    instructions = [
        (LOAD, 0, 0, ARCH_AT),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
    ]
    if machine == "x86_64":
        instructions += [(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, KILL)]
    conditional = conditions()
    for name, numbers in NUMBERS.items():
        number = numbers[column]
        if number is None:
            continue
        body = list(_body(conditional[name])) if name in conditional else [(RETURN, 0, 0, ALLOW)]
        instructions += [(EQUAL, 0, len(body), number), *body]
    instructions.append((RETURN, 0, 0, ERRNO | errno.EPERM))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


def _body(alternatives: list[list[Test]]) -> Iterator[Instruction]:
    """Allow where all tests of an alternative hold, else refuse."""
    for tests in alternatives:
        left = 3 * len(tests)
        for word, mask, value, wanted in tests:
            left -= 3
            yield LOAD, 0, 0, ARGUMENTS_AT + 4 * word
            yield AND, 0, 0, mask
            to_next = left + 1  # over the other tests and the return
            yield (EQUAL, 0, to_next, value) if wanted else (EQUAL, to_next, 0, value)
        yield RETURN, 0, 0, ALLOW
    yield RETURN, 0, 0, ERRNO | (errno.EPERM if alternatives else errno.ENOSYS)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install() -> None:
    """Filter this thread and those that it starts from now on. Raises OSError where the kernel does not."""
    code = program(platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))
    described = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    steps = ((NO_NEW_PRIVS, 1, None), (SET_SECCOMP, FILTER_MODE, ctypes.byref(described)))
    for option, value, pointer in steps:
        if libc.prctl(option, ctypes.c_ulong(value), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
            raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")
