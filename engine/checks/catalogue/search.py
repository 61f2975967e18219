"""From what a person types to a finding's entry."""

from __future__ import annotations

import difflib
import re

from ...errors import WhetError
from . import CATALOGUE
from .entry import Entry

ID = re.compile(r"^([A-Z])-?0*(\d+)$")


def find_entry(word: str) -> Entry:
    """The entry of an id, in any case and with or without its zero (``d1`` is D01).

    Raises:
        WhetError: ``explain.unknown_id`` with the nearest ids, or entries that hold all words of ``word``.
    """
    match = ID.match(word.strip().upper())
    id = f"{match[1]}{int(match[2]):02d}" if match else word.strip().upper()
    if id in CATALOGUE:
        return CATALOGUE[id]
    near = _neighbours(id) if match else _holding(word)
    named = "; ".join(f"{key} ({CATALOGUE[key].title})" for key in near)
    raise WhetError(
        "explain.unknown_id",
        f"{word!r} is no finding's id.",
        f"Did you mean {named}?" if near else "`whet explain` lists them all.",
    )


def _neighbours(id: str) -> list[str]:
    """The nearest numbers of the same phase; without such a phase, ids that look alike."""
    same = [key for key in CATALOGUE if key[0] == id[0]]
    nearest = sorted(same, key=lambda key: abs(int(key[1:]) - int(id[1:])))[:2]
    return nearest or difflib.get_close_matches(id, CATALOGUE, n=3, cutoff=0.6)


def _holding(phrase: str) -> list[str]:
    """Three entries in whose title, symptom, cause or cure every word of the phrase begins a word."""
    words = re.findall(r"\w+", phrase.lower())
    found = [key for key, one in CATALOGUE.items() if words and _holds(_words(one), words)]
    # What people see comes before what it is called and what to do.
    return sorted(found, key=lambda key: not _holds(CATALOGUE[key].symptom.lower(), words))[:3]


def _holds(text: str, words: list[str]) -> bool:
    return all(re.search(rf"\b{re.escape(word)}", text) for word in words)


def _words(entry: Entry) -> str:
    return f"{entry.title} {entry.symptom} {entry.why} {entry.fix}".lower()
