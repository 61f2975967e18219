"""Whether something works with a family, and the words for it where it does not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Supported:
    """Works and is tested."""


@dataclass(frozen=True)
class Unsupported:
    """Refused, with the reason a person is told."""

    reason: str


@dataclass(frozen=True)
class Experimental:
    """Works as far as was seen; the note says what is not proven."""

    note: str


Capability = Supported | Unsupported | Experimental
