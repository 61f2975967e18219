"""One finding id in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What `docs/troubleshooting.md` says of an id.

    Args:
        id: as findings carry it.
        title: the symptom in a few words.
        symptom: what people see, without knowing the cause; one to three sentences.
        seen: how whet sees it, and when.
        why: the cause.
        fix: what to do, with recipe keys and commands in backticks.
        awaits: the part of whet the check comes with, where it is not there yet; None where it is.
    """

    id: str
    title: str
    symptom: str
    seen: str
    why: str
    fix: str
    awaits: str | None = None
