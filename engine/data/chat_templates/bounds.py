"""What one rendering of a foreign template may cost: time, texts, and the size of what it builds.

Jinja's sandbox keeps a template away from the machine, not from using it up. Here every loop's turn and every
call is counted, and what makes texts or structures grow is measured before it is done.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Sized
from typing import Any

import jinja2

SECONDS = 3.0
"""CPU time of one rendering; honest ones take milliseconds."""
LONGEST = 16 << 20
"""Characters of one text, and entries of one list."""
SHORT = 100_000
"""Characters beyond which making a text takes time worth looking at the clock."""
WRITTEN = 1 << 30
"""Characters of all texts that one rendering makes, those it throws away included."""
ENTRIES = 200_000
"""Values in one structure, those that are in it twice counted twice: a pair doubled forty times is more than
any machine can print."""
BITS = 1 << 14
"""Of a whole number."""

WIDTH = re.compile(r"\d{6,}")
"""In a format, of more characters than any column has."""
Number = (int, float)
STRUCTURES = (dict, list, tuple)


class Overrun(jinja2.TemplateError):
    """The rendering costs more than any honest one; what it was about to do was not done."""


class Meter(threading.local):
    """One thread's rendering that is under way."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Count anew."""
        self._until = time.thread_time() + SECONDS
        self._written = self._turns = 0

    def tick(self) -> None:
        """A turn of a loop, or a call. Looking at the clock costs more than most of them."""
        self._turns += 1
        if not self._turns & 63:
            self._look()

    def _look(self) -> None:
        if time.thread_time() > self._until:
            raise Overrun(f"it takes more than {SECONDS:.0f} seconds")

    def text(self, length: int) -> None:
        """A text of that many characters is about to be made."""
        self._written += length
        if length > SHORT:
            self._look()
        if length > LONGEST or self._written > WRITTEN:
            raise Overrun(f"it makes a text of more than {min(length, LONGEST):,} characters")

    def join(self, parts: Iterable[str]) -> str:
        """The parts as one text."""
        kept = parts if isinstance(parts, list) else list(self._taken(parts))
        self.text(sum(map(len, kept)))
        return "".join(kept)

    def _taken(self, parts: Iterable[str]) -> Iterable[str]:
        total = 0
        for part in parts:
            total += len(part)
            if total > LONGEST:
                self.text(total)
            yield part

    def size(self, value: Any) -> Any:
        """``value``, unless it holds too many values or characters, however deep."""
        if not isinstance(value, STRUCTURES):
            return value
        waiting, seen, written = [value], 0, 0
        while waiting:
            one = waiting.pop()
            if isinstance(one, str):
                written += len(one)
                continue
            if isinstance(one, dict):
                inner: Sized = one
                waiting += [*one, *one.values()]
            elif isinstance(one, list | tuple):
                inner = one
                waiting += one
            else:
                continue
            seen += len(inner) + 1
            if seen > ENTRIES:
                raise Overrun(f"it builds a structure of more than {ENTRIES:,} values")
        if written > LONGEST:
            raise Overrun(f"it builds a structure of more than {LONGEST:,} characters")
        return value

    def operation(self, sign: str, left: Any, right: Any) -> None:
        """Before ``left sign right``."""
        if sign == "%" and isinstance(left, str):
            self.formatted(left, right)
        elif sign in "+*" and (isinstance(left, Sized) or isinstance(right, Sized)):
            self.text(_repeated(left, right) if sign == "*" else _long(left) + _long(right))
        elif sign in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if sign == "**" else left.bit_length() + right.bit_length()
            if bits > BITS:
                raise Overrun(f"it computes a number of more than {BITS:,} bits")

    def formatted(self, text: str, values: Any) -> None:
        """Before ``text % values``."""
        self.size(values)
        if WIDTH.search(text) or re.search(r"%[^a-zA-Z%]*\*", text):
            raise Overrun(f"it formats with the widths of {text[:60]!r}")
        parts = list(values.values()) if isinstance(values, dict) else values
        longest = max(map(_long, parts if isinstance(parts, list | tuple) else [parts]), default=0)
        self.text(len(text) + text.count("%") * longest)

    def method(self, owner: str | bytes, name: str, arguments: tuple[Any, ...]) -> None:
        """Before ``owner.name(*arguments)`` of a text."""
        if name == "replace" and len(arguments) > 1:
            self.replaced(owner, arguments[0], arguments[1])
        elif name == "join" and arguments:
            self.joined(owner, arguments[0])
        elif name == "expandtabs":
            self.text(len(owner) * max((one for one in arguments if isinstance(one, int)), default=8))
        else:
            self.text(max((one for one in arguments if isinstance(one, int)), default=0))

    def replaced(self, text: Any, old: Any, new: Any) -> None:
        """Before all ``old`` in ``text`` become ``new``."""
        if isinstance(text, str | bytes) and isinstance(old, type(text)):
            self.text(len(text) + text.count(old) * _long(new))  # type: ignore[arg-type]  # of one type

    def joined(self, between: Any, parts: Any) -> None:
        """Before ``between.join(parts)``."""
        if isinstance(parts, Sized):
            inner = parts if isinstance(parts, list | tuple) else ()
            self.text(_long(parts) * (1 + _long(between)) + sum(map(_long, inner)))

    def summed(self, value: Any, start: tuple[Any, ...]) -> None:
        """Before ``value`` is added up, which copies lists as often as there are some."""
        parts = value if isinstance(value, list | tuple) else ()
        lists = [one for one in (*parts, *start) if isinstance(one, list | tuple)]
        self.text(len(parts) * sum(map(len, lists)))

    def filtered(self, name: str, value: Any, arguments: tuple[Any, ...]) -> None:
        """Before ``value|name(*arguments)``, which may write them out, or write them many times."""
        for one in arguments if name in COUNTING else (value, *arguments):
            self.size(one)
        numbers = [one for one in arguments if isinstance(one, Number)]
        if name == "replace" and len(arguments) > 1:
            self.replaced(str(value), str(arguments[0]), str(arguments[1]))
        elif name == "join":
            self.joined(arguments[0] if arguments else "", value)
        elif name == "format":
            self.formatted(str(value), arguments)
        elif name == "sum":
            self.summed(value, arguments)
        elif name == "indent":
            width = max(map(_width, arguments), default=4)
            self.text(_long(value) + (str(value).count("\n") + 1) * width)
        elif name in ("wordwrap", "urlize"):
            self.text(_long(value) * (1 + max(map(_long, arguments), default=0)))
        elif name in WIDTHS and any(abs(one) > 1000 for one in numbers):
            raise Overrun(f"its filter {name} is given {max(numbers)}")


WIDTHS = ("center", "batch", "slice", "round", "tojson")
"""Filters that do as much as a number says."""
COUNTING = ("length", "count")
"""Filters that look at no value; templates ask them of whole conversations, once a turn."""


def _long(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else 1


def _width(value: Any) -> int:
    return int(value) if isinstance(value, int) else _long(value)


def _repeated(left: Any, right: Any) -> int:
    number = left if isinstance(left, int) else right
    return _long(right if number is left else left) * (number if isinstance(number, int) else 1)
