"""Text from models and data is untrusted: control characters are shown, never obeyed. Light."""

from __future__ import annotations

import unicodedata

# Characters that reorder or hide what stands around them. Joiners stay: Persian, Hindi and emoji need them.
INVISIBLE = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def printable(text: str) -> str:
    """``text`` with its line breaks and tabs; any other control character as its picture, ESC as ``␛``."""
    return "".join(map(_shown, text))


def _shown(char: str) -> str:
    category = unicodedata.category(char)
    if char in "\n\t" or (category not in ("Cc", "Cs") and char not in INVISIBLE):
        return char
    code = ord(char)
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "�"
