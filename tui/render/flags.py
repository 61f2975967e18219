"""Environment flags that are set: who reads each, what it does now."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from whet.engine.api import FlagReport

from .text import plain

LONG_VALUE = 60


def flag_report(flags: list[FlagReport]) -> RenderableType:
    """One block a flag: its value and reader, its effect, what speaks against it, advice."""
    if not flags:
        return Text("no environment flag that matters is set", style="green")
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for flag in flags:
        name = Text(plain(flag.name), style="bold")
        about = Text.assemble(plain(flag.effect), ("  read by " + plain(flag.reader), "dim"))
        if flag.value and flag.value not in flag.effect:
            name.append(f"\n={plain(flag.value, LONG_VALUE)}", style="dim")
        if flag.conflict:
            about.append(f"\n{plain(flag.conflict)}", style="yellow")
        if flag.advice:
            about.append(f"\n{plain(flag.advice)}")
        if flag.command:
            about.append(f"\n{plain(flag.command)}", style="bold")
        table.add_row(name, about)
    wrong = sum(bool(flag.conflict) for flag in flags)
    words = f"{len(flags)} set that matter" + (f", {wrong} of them at odds" if wrong else "")
    return Group(table, Text(), Text(words, style="yellow" if wrong else "dim"))
