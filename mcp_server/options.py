"""What an operator allows: the words of the command line, never of a tool call."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

TOOLSETS = ("inspect", "plan", "train", "eval", "export", "hub")
BY_DEFAULT = frozenset(TOOLSETS) - {"hub"}


@dataclass(frozen=True)
class Options:
    """One server's limits; see ``whet-mcp --help``."""

    root: Path
    """The only folder from which tools read data, models and files, and into which they write; absolute."""
    read_only: bool = False
    """Offer no tool that writes, whatever the tool sets say."""
    toolsets: frozenset[str] = BY_DEFAULT
    push_unasked: bool = False
    """Let hub_push go ahead where no person can be asked."""
    remote_code: frozenset[str] = field(default_factory=frozenset)
    """``id@commit`` of the models whose own Python code may run."""
    calls_per_minute: int = 240
    writes_per_minute: int = 30
    """Limits of one server, all its clients together."""
