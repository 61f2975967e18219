"""Open a GGUF that somebody else may have made. Light: the gguf package maps the file.

The package believes a file's counts and reads behind its end without an error: a list of 2^60 numbers fills
the memory. So the keys are walked here first, by the public description of the format.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import WhetError

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderField

VERSIONS = (2, 3)
TEXT, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the other kinds of values, by the format's numbers for them."""
LEAST_KEY, LEAST_TENSOR = 13, 24
"""Bytes of the shortest."""
WRONG = (ArithmeticError, LookupError, MemoryError, OSError, SystemError, TypeError, ValueError, struct.error)
"""What the package raises for counts, types and places that cannot be."""


def open_gguf(path: Path) -> GGUFReader:
    """The file's header, its tensors mapped. Raises WhetError ``gguf.unreadable`` for no whole GGUF."""
    from gguf import GGUFReader

    try:
        _walk_keys(path)
        return GGUFReader(path)
    except WRONG as error:
        raise _unreadable(path, error) from error


def _walk_keys(path: Path) -> None:
    """Raise ValueError or struct.error for counts and lengths beyond the file's end."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, version, tensors, keys = struct.unpack_from("<4sIQQ", data)
        if magic != b"GGUF" or version not in VERSIONS:
            raise ValueError(f"it begins with {magic!r} and version {version}")
        if tensors * LEAST_TENSOR + keys * LEAST_KEY > len(data):
            raise ValueError(f"it counts {keys:,} keys and {tensors:,} tensors")
        at = 24
        for _ in range(keys):
            at = _behind_text(data, at)
            (kind,) = struct.unpack_from("<I", data, at)
            at = _behind_value(data, at + 4, kind)


def _behind_text(data: mmap.mmap, at: int) -> int:
    (length,) = struct.unpack_from("<Q", data, at)
    if at + 8 + length > len(data):
        raise ValueError(f"a text of {length:,} bytes at byte {at:,}")
    return at + 8 + length


def _behind_value(data: mmap.mmap, at: int, kind: int) -> int:
    if kind == TEXT:
        return _behind_text(data, at)
    if kind != ARRAY:
        return at + SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if at + count * SIZES.get(inner, 8) > len(data):
        raise ValueError(f"a list of {count:,} entries at byte {at:,}")
    if inner != TEXT:
        return at + count * SIZES[inner]  # lists in lists are no valid key: KeyError
    for _ in range(count):
        at = _behind_text(data, at)
    return at


def value_of(field: ReaderField, path: Path) -> Any:
    """What a key of the header of ``path`` says. Raises WhetError ``gguf.unreadable`` for a broken text."""
    try:
        return field.contents()
    except WRONG as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> WhetError:
    return WhetError(
        "gguf.unreadable",
        f"{path} is no GGUF file, or not a whole one: {type(error).__name__}: {error}.",
        "Name another file, or write or download this one again.",
    )
