"""Which files a program may touch, by Linux's Landlock: some to read, one folder to write, no others.

Needs no privilege; it cannot be taken off again. Only ctypes and the kernel (5.13 or newer) are used.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from pathlib import Path

CREATE, ADD, RESTRICT = 444, 445, 446
"""System call numbers, the same on every machine."""
VERSION, BENEATH, NO_NEW_PRIVS = 1, 1, 38
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
FOLDERS_ONLY = ~(EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | 1 << 15)
"""Rights that only a folder can have; truncating (14) and device controls (15) are a file's too."""
RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""Landlock version -> how many rights to files it knows, from bit 0 on (linux/landlock.h)."""
SCOPES = {6: 3}
"""Version -> bits that keep signals and abstract sockets inside."""


class _Rules(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """The kernel's Landlock; 0 where it has none."""
    return max(0, ctypes.CDLL(None).syscall(CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION)))


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Confine this thread and those that it starts. Paths that are not there are left out.

    Raises OSError where the kernel has no Landlock, or has it switched off.
    """
    known = version()
    if known == 0:
        raise OSError(
            errno.ENOSYS, "the kernel has no Landlock (5.13 or newer, in its list of security modules)"
        )
    everything = (1 << _newest(RIGHTS, known)) - 1
    rules = _Rules(everything, 0, _newest(SCOPES, known))
    size = 24 if rules.scopes else 8  # older kernels know the first field only
    libc = ctypes.CDLL(None, use_errno=True)
    ruleset = _checked(libc.syscall(CREATE, ctypes.byref(rules), ctypes.c_size_t(size), ctypes.c_uint32(0)))
    try:
        for path in readable:
            _allow(libc, ruleset, path, EXECUTE | READ_FILE | READ_DIR)
        for path in writable:
            _allow(libc, ruleset, path, everything)
        _checked(libc.prctl(NO_NEW_PRIVS, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3))
        _checked(libc.syscall(RESTRICT, ruleset, ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)


def _newest(table: dict[int, int], known: int) -> int:
    return max((value for version, value in table.items() if version <= known), default=0)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    if not path.exists():
        return
    rights = rights if path.is_dir() else rights & ~FOLDERS_ONLY
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _Beneath(rights, opened)
        _checked(libc.syscall(ADD, ruleset, BENEATH, ctypes.byref(rule), ctypes.c_uint32(0)))
    finally:
        os.close(opened)


def _checked(returned: int) -> int:
    if returned < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return returned
