"""Text for a terminal: on one line, as an override that can be pasted."""

from __future__ import annotations

import json
import shlex

from whet.engine.printable import escaped, printable  # the whole façade would delay the first paint

__all__ = ["escaped", "override", "plain", "printable"]


def plain(text: str, limit: int | None = None) -> str:
    """``text`` on one line, control characters as pictures; cut to ``limit`` characters with an ellipsis."""
    line = printable(" ".join(text.split()))
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def override(key: str, value: object) -> str:
    """``key=value`` as it can be pasted behind a recipe on a command line."""
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shlex.quote(plain(f"{key}={words}"))
