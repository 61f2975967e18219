"""Rows as columns: the layouts of methods that learn from more than one text a row.

A method's layouts say which columns are stored and from which field of a row each one comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .messages import content_text
from .rows import RowError

Kind = Literal["text", "number", "label"]


@dataclass(frozen=True)
class Column:
    """What a stored column holds, and the field of a row that it comes from."""

    kind: Kind
    field: str


@dataclass(frozen=True)
class Layout:
    """The columns of a table of rows, and their name among the layouts."""

    name: str
    columns: dict[str, Column]

    @property
    def texts(self) -> list[str]:
        """Columns that a model reads."""
        return [name for name, column in self.columns.items() if column.kind == "text"]

    def read(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """A row's stored columns. Raises RowError where a field is missing or of another type."""
        return {name: READERS[column.kind](value, column.field) for name, column in self.columns.items()}


def text_of(value: Mapping[str, Any], name: str) -> str:
    """A field that must hold text."""
    text = content_text(_present(value, name), f"field {name!r}")
    if not text.strip():
        raise RowError(f"field {name!r} is empty")
    return text


def number_of(value: Mapping[str, Any], name: str) -> float:
    """A field that must hold a finite number; a CSV's cell may spell it."""
    held = _present(value, name)
    try:
        number = float(held) if isinstance(held, int | float | str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"field {name!r} is {held!r}, expected a finite number")
    return number


def label_of(value: Mapping[str, Any], name: str) -> str:
    """A field that names a class: text, a whole number or a truth value."""
    held = _present(value, name)
    if isinstance(held, float) and held.is_integer():
        held = int(held)
    if not isinstance(held, str | int) or (isinstance(held, str) and not held.strip()):
        raise RowError(f"field {name!r} is {held!r}, expected the name or number of a class")
    return str(held).strip()


def _present(value: Mapping[str, Any], name: str) -> Any:
    if name not in value:
        fields = ", ".join(map(repr, list(value)[:8])) or "none"
        raise RowError(f"field {name!r} is missing (fields: {fields})")
    if value[name] is None:
        raise RowError(f"field {name!r} is null")
    return value[name]


READERS: dict[Kind, Callable[[Mapping[str, Any], str], Any]] = {
    "text": text_of,
    "number": number_of,
    "label": label_of,
}
