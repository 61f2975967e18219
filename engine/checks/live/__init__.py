"""Checks of a training while it runs: state machines over its events. No torch, so tests need no training."""

from __future__ import annotations

from .watch import Pace, Watch, Watched

__all__ = ["Pace", "Watch", "Watched"]
