"""Rows as columns: the layouts of methods that learn from more than one text a row.

A method's layouts say which columns are stored and from which field of a row each one comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .messages import Message, canonical_messages, content_text
from .rows import RowError, repr_of

Kind = Literal["text", "number", "label", "labels", "words", "turns", "truth", "audio", "codes", "free"]


@dataclass(frozen=True)
class Column:
    """What a stored column holds, and the field of a row that it comes from."""

    kind: Kind
    field: str


@dataclass(frozen=True)
class Layout:
    """The columns of a table of rows, and their name among the layouts.

    Args:
        name: among the layouts.
        columns: as they are stored.
        joint: the first text goes through the model beside each of the others, not each by itself.
        classes: the column that names a row's class, or classes.
        aligned: two columns whose lists are equally long in each row.
    """

    name: str
    columns: dict[str, Column]
    joint: bool = False
    classes: str | None = None
    aligned: tuple[str, str] | None = None

    @property
    def texts(self) -> list[str]:
        """Columns that a model reads."""
        return [name for name, column in self.columns.items() if column.kind in ("text", "words", "turns")]

    @property
    def inputs_per_row(self) -> int:
        """What goes through the model of a row."""
        return max(1, len(self.texts) - 1) if self.joint else len(self.texts)

    def inputs(self, row: Mapping[str, Any]) -> list[str | tuple[str, str]]:
        """Of a stored row, as a tokenizer takes them."""
        texts = [" ".join(row[name]) if isinstance(row[name], list) else row[name] for name in self.texts]
        if self.joint and len(texts) > 1:
            return [(texts[0], other) for other in texts[1:]]
        return list(texts)

    def classes_of(self, row: Mapping[str, Any]) -> list[str]:
        """Those that a stored row names."""
        if self.classes is None:
            return []
        held = row[self.classes]
        return held if isinstance(held, list) else [held]

    def read(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """A row's stored columns. Raises RowError where a field is missing or of another type."""
        row = {name: READERS[column.kind](value, column.field) for name, column in self.columns.items()}
        if self.aligned is not None:
            one, other = self.aligned
            if len(row[one]) != len(row[other]):
                raise RowError(
                    f"field {self.columns[one].field!r} has {len(row[one])} entries, "
                    f"{self.columns[other].field!r} {len(row[other])}"
                )
        return row


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
        raise RowError(f"field {name!r} is {repr_of(held)}, expected a finite number")
    return number


def label_of(value: Mapping[str, Any], name: str) -> str:
    """A field that names a class: text, a whole number or a truth value."""
    return _label(_present(value, name), name)


def truth_of(value: Mapping[str, Any], name: str) -> str:
    """A field that says yes or no, as ``true`` or ``false``; a CSV's cell may spell it."""
    held = _present(value, name)
    said = str(held).strip().lower() if isinstance(held, bool | int | float | str) else ""
    if said in ("true", "1", "1.0"):
        return "true"
    if said in ("false", "0", "0.0"):
        return "false"
    raise RowError(f"field {name!r} is {repr_of(held)}, expected true or false")


def free_of(value: Mapping[str, Any], name: str) -> Any:
    """A field that may hold anything, or be missing."""
    return value.get(name)


def turns_of(value: Mapping[str, Any], name: str) -> str | list[Message]:
    """A field that must hold text, or a list of messages."""
    if isinstance(value.get(name), list):
        return canonical_messages(value[name], name)
    return text_of(value, name)


def labels_of(value: Mapping[str, Any], name: str) -> list[str]:
    """A field that names any number of classes, in a list."""
    return [_label(held, name) for held in _list(value, name)]


def words_of(value: Mapping[str, Any], name: str) -> list[str]:
    """A field that holds a text as a list of its words."""
    words = _list(value, name)
    if not words:
        raise RowError(f"field {name!r} is an empty list")
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise RowError(f"field {name!r} holds {repr_of(word)}, expected words")
    return [word.strip() for word in words]


def _list(value: Mapping[str, Any], name: str) -> list[Any]:
    held = _present(value, name)
    if not isinstance(held, list):
        raise RowError(f"field {name!r} is {repr_of(held)}, expected a list")
    return held


def _label(held: Any, name: str) -> str:
    if isinstance(held, float) and held.is_integer():
        held = int(held)
    if not isinstance(held, str | int) or (isinstance(held, str) and not held.strip()):
        raise RowError(f"field {name!r} is {repr_of(held)}, expected the name or number of a class")
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
    "labels": labels_of,
    "words": words_of,
    "turns": turns_of,
    "truth": truth_of,
    "audio": _present,  # sound is read where it is stored
    "codes": _list,
    "free": free_of,
}
