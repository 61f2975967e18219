"""Data and template: rows, markers, lengths, ends."""

from __future__ import annotations

from .entry import Entry

ENTRIES: tuple[Entry, ...] = ()
