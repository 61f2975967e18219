"""Private directories and atomic files: what a reader opens is whole, and only its owner can read it."""

from __future__ import annotations

import os
import zlib
from itertools import takewhile
from pathlib import Path

BLOCK = 1 << 20


def private_dir(path: Path) -> Path:
    """Create ``path``, and what is missing above it, readable by its owner only; what exists is left alone.

    ``Path.mkdir(parents=True)`` would make the parents by the umask: a home that others may write, at worst.
    """
    missing = takewhile(lambda folder: not folder.exists(), path.parents)
    for folder in (*reversed(list(missing)), path):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
    return path


def private_file(path: Path, flags: int) -> int:
    """Open ``path`` with mode 0600, whatever the umask; returns the descriptor."""
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: written beside it, fsynced, renamed. One process may write a path.

    Raises OSError (a full disk among them) and then leaves the old file untouched.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        with open(private_file(beside, os.O_WRONLY | os.O_TRUNC), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Make a file's content, or the renames inside a folder, survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def checksum(path: Path) -> int:
    """CRC-32 of a file's content: a flipped bit changes it, and it costs less than reading the disk does."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
