"""Whether a completion's number is the right one: 1,234.50, 3/4, 75%, 6.02e23 and their like."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, NamedTuple

from .answers import answer_in, right_answers

PLAIN = (
    r"(?:\d{1,3}(?:[,_\u00a0\u202f]\d{3}){1,99}(?:\.\d{1,300})?|\d{1,300}(?:\.\d{1,300})?|\.\d{1,300})(?!\d)"
)
"""Digits with thousands marked or not. Longer ones are no numbers: they only cost time."""
NUMBER = re.compile(
    rf"""(?<![\w.])(?P<sign>[-+−])?(?:[$€£¥]\s?)?
        (?:\\[dt]?frac\{{\s*(?P<sign_above>[-−])?(?P<above>{PLAIN})\s*\}}\{{\s*(?P<below>{PLAIN})\s*\}}
        |(?P<number>{PLAIN})(?:[eE](?P<exponent>[-+]?\d{{1,3}})(?!\d)|\s?/\s?(?P<divisor>{PLAIN}))?)
        (?P<percent>\s?\\?%)?""",
    re.VERBOSE,
)
SIGNS = "-−"


class Number(NamedTuple):
    """A number as written: 50% is 50 and a percentage."""

    written: Fraction
    percent: bool

    @property
    def values(self) -> list[Fraction]:
        """What it may mean: a percentage is also what it is of one."""
        return [self.written / 100, self.written] if self.percent else [self.written]


def last_number(text: str) -> Number | None:
    """The last number that stands in a text by itself, not inside of a word; None without one.

    A minus counts where no number or word stands right before it, so that `10-3` ends in 3.
    """
    found = None
    for match in NUMBER.finditer(text):
        found = _read(match) or found
    return found


def _read(match: re.Match[str]) -> Number | None:
    parts = match.groupdict()
    above, below = parts["number"] or parts["above"], parts["divisor"] or parts["below"]
    value = _plain(above)
    if parts["exponent"]:
        value *= Fraction(10) ** int(parts["exponent"])
    if below is not None:
        if _plain(below) == 0:
            return None
        value /= _plain(below)
    negative = ((parts["sign"] or "") in SIGNS and bool(parts["sign"])) != bool(parts["sign_above"])
    return Number(-value if negative else value, parts["percent"] is not None)


def _plain(digits: str) -> Fraction:
    return Fraction(re.sub(r"[,_\u00a0\u202f]", "", digits))


def right_numbers(value: Any) -> list[Number]:
    """A column's answer as numbers, of which any is right. Raises ValueError where one is none."""
    numbers = []
    for text in right_answers(value):
        number = last_number(text)
        if number is None:
            raise ValueError("no number")
        numbers.append(number)
    return numbers


def number(
    text: str, answer: Any, *, extract: str | None = None, tolerance: float = 1e-9, relative: float = 0.0
) -> float:
    """1 if the last number of the text's answer differs from one of ``answer`` by at most ``tolerance``, or
    ``relative`` times the right number; else 0.

    `50%` equals 0.5, and 50 too. Raises ValueError where ``answer`` holds no number.
    """
    right = right_numbers(answer)
    said = answer_in(text, extract)
    given = None if said is None else last_number(said)
    if given is None:
        return 0.0
    return float(any(_close(given, one, Fraction(tolerance), Fraction(relative)) for one in right))


def _close(given: Number, right: Number, tolerance: Fraction, relative: Fraction) -> bool:
    if given.percent and right.percent:
        pairs = [(given.values[0], right.values[0])]
    else:
        pairs = [(one, other) for one in given.values for other in right.values]
    return any(abs(one - other) <= max(tolerance, relative * abs(other)) for one, other in pairs)
