"""Every finding id in words: what people see, how whet sees it, why it happens, what helps.

`docs/troubleshooting.md` is made from this (`make troubleshooting`), and `whet explain ID` prints an entry.
"""

from __future__ import annotations

from . import data, environment, export, load, training
from .entry import Entry

CATALOGUE: dict[str, Entry] = {
    entry.id: entry for module in (environment, data, load, training, export) for entry in module.ENTRIES
}

__all__ = ["CATALOGUE", "Entry"]
