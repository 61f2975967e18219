"""What a source yields: a row with its place, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PREVIEW = 120


REFUSES = "The chat template refuses a conversation"
"""How the reason begins of rows that a template cannot write, say for their system message."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in the file; ``line`` counts from 1 (row number where a file has no lines)."""

    file: str
    line: int
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A place that holds no usable row."""

    file: str
    line: int
    reason: str
    preview: str = ""


class RowError(Exception):
    """One row cannot be used; the message says why. The row's place is added by whoever reads rows."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def preview_of(value: object) -> str:
    """The beginning of a row, on one line and printable."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    text = " ".join(text[: 4 * PREVIEW].split())
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return text if len(text) <= PREVIEW else text[: PREVIEW - 1] + "…"


def repr_of(value: object) -> str:
    """As Python writes it, no longer than a preview: an error names it, and a row may hold anything."""
    text = repr(value)
    return text if len(text) <= PREVIEW else text[: PREVIEW - 1] + "…"
