"""Export: merged weights, GGUF, Modelfile."""

from __future__ import annotations

from .entry import Entry

ENTRIES: tuple[Entry, ...] = ()
