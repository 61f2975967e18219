"""Text from models and data is untrusted: control characters are shown, never obeyed. Light."""

from __future__ import annotations

import unicodedata

OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that reorder or hide what stands around them, break lines, or hold text that is
not seen: tags, from U+E0000 on, which agents can read."""
KEPT = frozenset("\n\t\u00ad\u200b\u200c\u200d\u2060")
"""Persian, Hindi, Khmer and emoji need joiners and places to break a word."""
SIGNS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
"""Of the same category and seen: Arabic, Syriac and Kaithi write them around numbers."""


def printable(text: str) -> str:
    """``text`` with its line breaks and tabs; any other control character as its picture, ESC as ``␛``."""
    return "".join(map(_shown, text))


def escaped(json: str) -> str:
    """The same JSON, written so that a terminal that shows it obeys nothing in its texts either."""
    return json if json.isascii() else "".join(map(_as_escape, json))


def _as_escape(char: str) -> str:
    if _shown(char) == char:
        return char
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def _shown(char: str) -> str:
    if char in KEPT or char in SIGNS or unicodedata.category(char) not in OBEYED:
        return char
    code = ord(char)
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "�"
