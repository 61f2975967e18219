"""Prompts: the flow as something a person picks from a menu."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .server import Server


def add_prompts(server: Server) -> None:
    """Nothing yet."""
