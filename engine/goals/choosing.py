"""Which models to try for a goal that names none, best first, and why the others are passed over."""

from __future__ import annotations

from dataclasses import dataclass

from ..hardware import Machine
from ..models.listing import ModelEntry, list_models
from .goal import Goal

DEMO = "demo"
USEFUL = 400e6
"""Parameters below which answers are rarely useful."""
USABLE = 100e6
"""The same where nothing larger is practical: on a CPU."""
SPARE = 0.1
"""Share of the memory that stays free for other programs when a model is chosen."""
NO_GGUF = "it has no GGUF export"
NAMED = 3
"""Models that are named in one line of those passed over."""


@dataclass(frozen=True)
class Candidates:
    """Models to try in this order, and the words for those that are not."""

    entries: list[ModelEntry]
    passed_over: list[str]


def candidates(goal: Goal, machine: Machine, capacity_gib: float, text: bool) -> Candidates:
    """Instruct models (base models for plain text) that are here or can come, that fit, in order of the
    priority: for quality the largest first, else the smallest useful one; on a CPU always a small one. Models
    without a GGUF export stand in only where there is no other; the demo model is the last resort.

    Args:
        goal: priority and limits count.
        machine: as it will be planned for, a memory limit applied.
        capacity_gib: of its device.
        text: the data are plain text.
    """
    kept: list[ModelEntry] = []
    demo: list[ModelEntry] = []
    passed: dict[str, list[str]] = {}
    without_gguf: list[ModelEntry] = []
    for entry in list_models(machine=machine):
        reason = _refusal(entry, capacity_gib, text)
        if entry.source == "demo":
            demo.append(entry)
        elif reason is not None:
            passed.setdefault(reason, []).append(entry.name)
        elif goal.export != [] and entry.gguf is not None:
            without_gguf.append(entry)
        else:
            kept.append(entry)
    if not kept:
        kept = without_gguf
    elif without_gguf:
        passed[NO_GGUF] = [entry.name for entry in without_gguf]
    floor = USEFUL if machine.gpus else USABLE
    small = [entry for entry in kept if entry.parameters < floor]
    useful = [entry for entry in kept if entry.parameters >= floor]
    largest_first = goal.priority == "quality" and bool(machine.gpus)
    useful.sort(key=lambda entry: (-entry.parameters if largest_first else entry.parameters, not entry.here))
    small.sort(key=lambda entry: -entry.parameters)
    return Candidates([*useful, *small, *demo], [words(names, why) for why, names in passed.items()])


def _refusal(entry: ModelEntry, capacity_gib: float, text: bool) -> str | None:
    """Why a model is not even tried; None where it is."""
    if entry.source == "run":
        return "the result of an earlier run"
    if not entry.reachable:
        return "not on this machine, and whet is offline"
    if entry.gated and not entry.here:
        return "gated: it needs a login and an accepted licence"
    if not text and not entry.chat:
        return "a base model, and the data are conversations"
    if text and entry.chat and not entry.here:
        return "an instruct model, and the data are plain text"
    if "sft" in entry.experimental:
        return "its family is only experimental here"
    if not any(needs <= (1 - SPARE) * capacity_gib for needs in entry.needs_gib.values()):
        return f"it does not fit {capacity_gib:.0f} GiB with a tenth to spare"
    return None


def words(names: list[str], why: str) -> str:
    """One line for several models that are passed over for the same reason."""
    shown = ", ".join(names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{shown}{more}: {why}."
