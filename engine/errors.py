"""The one error type people and agents see: a code to branch on, the fact, and what to do next."""

from __future__ import annotations

from .printable import printable

LONGEST = 3000
"""Characters of a message, and of a hint: values seen may be whole files."""


class WhetError(Exception):
    """Something the user can act on.

    Values seen are of foreign origin: control characters in them are shown, and their middle is left out
    where they are too long to be read.

    Args:
        code: stable dotted identifier, e.g. ``recipe.unknown_key``; front ends and agents branch on it.
        message: what failed and the values seen, one or two sentences.
        hint: what to do next, ideally an exact command or setting.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        message, hint = _readable(message), _readable(hint)
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[WhetError], tuple[str, str, str]]:
        """Pickles whole: errors cross process borders, e.g. out of a data set's worker."""
        return type(self), (self.code, self.message, self.hint)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def as_dict(self) -> dict[str, str]:
        """JSON form, the same in ``--json`` output, events and tool results."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


def _readable(text: str) -> str:
    half = LONGEST // 2
    return printable(text if len(text) <= LONGEST else f"{text[:half]} … {text[-half:]}")
