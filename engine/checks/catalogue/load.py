"""Load: weights, tokenizer, adapter, memory."""

from __future__ import annotations

from .entry import Entry

ENTRIES: tuple[Entry, ...] = ()
