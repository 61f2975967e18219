"""An action in the four ways it can be done elsewhere: what `y` copies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Action:
    """One thing a person could do on this screen."""

    label: str
    cli: str = ""
    """A shell command."""
    yaml: str = ""
    """A recipe, or a part of one."""
    python: str = ""
    mcp: str = ""
    """A call of whet-mcp's tools."""

    def forms(self) -> dict[str, str]:
        """Name of each form there is, and its text."""
        every = {"CLI": self.cli, "YAML": self.yaml, "Python": self.python, "MCP": self.mcp}
        return {name: text for name, text in every.items() if text}


def mcp_call(tool: str, **arguments: Any) -> str:
    """A tool call as agents write it: ``run_get(run_id="a1")``."""
    words = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
    return f"{tool}({', '.join(words)})"
