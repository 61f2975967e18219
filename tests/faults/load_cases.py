"""Broken set-ups of the load phase."""

from __future__ import annotations

from faults.harness import Fault

FAULTS: tuple[Fault, ...] = ()
