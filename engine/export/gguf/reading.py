"""Open a GGUF that somebody else may have made. Light: the gguf package maps the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import WhetError

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderField

WRONG = (ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError)
"""What the package raises for counts, types and places that cannot be."""


def open_gguf(path: Path) -> GGUFReader:
    """The file's header, its tensors mapped. Raises WhetError ``gguf.unreadable`` for no whole GGUF."""
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except WRONG as error:
        raise _unreadable(path, error) from error


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
