"""Saying things aloud: one warning category for everything the Python API decides on the user's behalf."""

from __future__ import annotations

import warnings


class WhetNote(UserWarning):
    """A setting was translated, replaced or ignored; the message says which, and what to write instead."""


def say(message: str, *, above: int = 0) -> None:
    """Warn once per distinct message and calling line, as Python's own filters decide.

    The line is the one that called the function that says it, or so many calls ``above`` that.
    """
    warnings.warn(message, WhetNote, stacklevel=3 + above)
