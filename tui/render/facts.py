"""Names on the left, values on the right: the shape most answers have."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from .text import plain


def facts(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """A borderless table of name and value; plain strings are taken literally, never as markup."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(plain(value)) if isinstance(value, str) else value)
    return table
