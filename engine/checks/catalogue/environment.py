"""Environment: packages, hardware, flags, network."""

from __future__ import annotations

from .entry import Entry

ENTRIES: tuple[Entry, ...] = ()
