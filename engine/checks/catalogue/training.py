"""Training: what shows while it runs."""

from __future__ import annotations

from .entry import Entry

ENTRIES: tuple[Entry, ...] = ()
