"""Text from models and data is untrusted: escape sequences are shown, never obeyed."""

from __future__ import annotations

import unicodedata


def plain(text: str, limit: int | None = None) -> str:
    """``text`` on one line without control characters; cut to ``limit`` characters with an ellipsis."""
    line = " ".join(text.split())
    line = "".join(" " if unicodedata.category(char) in ("Cc", "Cf") else char for char in line)
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def printable(text: str) -> str:
    """``text`` with its line breaks and tabs, without any other control character; for streaming."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf") else " " for char in text
    )
