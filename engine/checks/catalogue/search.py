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
        WhetError: ``explain.unknown_id`` with the nearest ids, or those whose words hold ``word``.
    """
    match = ID.match(word.strip().upper())
    id = f"{match[1]}{int(match[2]):02d}" if match else word.strip().upper()
    if id in CATALOGUE:
        return CATALOGUE[id]
    near = (
        _neighbours(id)
        if match
        else [key for key, one in CATALOGUE.items() if word.lower() in _words(one)][:3]
    )
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


def _words(entry: Entry) -> str:
    return f"{entry.title} {entry.symptom} {entry.why}".lower()
