"""How much of a screen with curves and panels fits: one thing, a few, or all."""

from __future__ import annotations

from typing import Literal

from textual.geometry import Size
from textual.screen import Screen

Room = Literal["small", "medium", "large"]
MEDIUM, LARGE = Size(100, 34), Size(160, 44)
"""Columns and rows from which a few things fit, and from which everything does."""


def room_of(size: Size) -> Room:
    """For a terminal of this size."""
    for name, least in (("large", LARGE), ("medium", MEDIUM)):
        if size.width >= least.width and size.height >= least.height:
            return "large" if name == "large" else "medium"
    return "small"


def mark_room(screen: Screen[None], size: Size) -> Room:
    """Set -small, -medium or -large on a screen for the style sheet."""
    room = room_of(size)
    for name in ("small", "medium", "large"):
        screen.set_class(name == room, f"-{name}")
    return room
