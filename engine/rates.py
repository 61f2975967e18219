"""Measured training speeds, kept so that the next plan can say how long its work takes.

The worker calls :func:`record_rate` after a run. The planner asks :func:`known_rate` for the same work on the
same machine, and :func:`correction` for how far the time model was off on that machine before. One small JSON
file in the cache.
"""

from __future__ import annotations

import fcntl
import json
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .runs.files import private_dir
from .settings import settings

if TYPE_CHECKING:
    from .models.facts import ModelFacts
    from .resolve import Resolved

FILE = "speeds.json"
MOST_CORRECTED = 3.0
"""A run slower or faster than predicted by more than this was held up by something else."""


def rate_key(facts: ModelFacts, resolved: Resolved) -> str:
    """What a speed depends on: model shape, machine, precisions, grouping, recomputing, trained share, and
    what is learnt."""
    schedule = resolved.schedule
    if schedule is None:
        grouping = [
            f"{resolved.batch_size}x{resolved.longest}",
            "checkpointing" if resolved.gradient_checkpointing else "plain",
        ]
    else:
        chosen = (schedule.recompute_attention, schedule.recompute_mlp, schedule.offload, schedule.chunk)
        grouping = [
            f"{resolved.rows_per_step}x{resolved.longest} by {schedule.budget}",
            "/".join(str(value) for value in chosen),
        ]
    parts = (
        facts.digest(),
        resolved.machine,
        resolved.base_precision,
        resolved.compute_dtype,
        *grouping,
        str(resolved.trainable_parameters),
        f"{resolved.threads} threads" if resolved.device == "cpu" else "",
        *([] if resolved.method == "sft" else [resolved.method]),
        *([] if resolved.ranks == 1 else [f"{resolved.ranks} ranks, {resolved.strategy}"]),
    )
    return "|".join(parts)


def record_rate(facts: ModelFacts, resolved: Resolved, tokens_per_second: float) -> None:
    """Remember a measured speed: tokens of all ranks' rows, padding and the start excluded."""
    predicted = _predicted(resolved)
    path = settings().cache / FILE
    private_dir(path.parent)
    with open(path.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        speeds = _read(path)
        speeds[rate_key(facts, resolved)] = {
            "machine": _machine(resolved),
            "measured": round(tokens_per_second, 1),
            "predicted": None if predicted is None else round(predicted, 1),
        }
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text(json.dumps(speeds, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        fresh.replace(path)


def known_rate(facts: ModelFacts, resolved: Resolved) -> float | None:
    """Tokens per second measured earlier for the same work on this machine, None when never measured."""
    found = _read(settings().cache / FILE).get(rate_key(facts, resolved))
    return None if found is None else float(found["measured"])


def correction(resolved: Resolved) -> float:
    """Measured over predicted seconds of earlier runs on this machine in these precisions; their median."""
    ratios = [
        one["predicted"] / one["measured"]
        for one in _read(settings().cache / FILE).values()
        if one["machine"] == _machine(resolved) and one["predicted"] and one["measured"]
    ]
    usual = [ratio for ratio in ratios if 1 / MOST_CORRECTED < ratio < MOST_CORRECTED]
    return statistics.median(usual) if usual else 1.0


def predicted_rate(resolved: Resolved) -> float | None:
    """Tokens per second by the time model, corrected; None where it knows nothing of the machine."""
    predicted = _predicted(resolved)
    return None if predicted is None else predicted / correction(resolved)


def _predicted(resolved: Resolved) -> float | None:
    """By the time model alone, of all ranks: a schedule's rows and seconds are one rank's."""
    schedule = resolved.schedule
    if schedule is None or schedule.tokens_per_second is None:
        return None
    return resolved.ranks * schedule.tokens_per_second


def _machine(resolved: Resolved) -> str:
    """How far off the time model is belongs to a machine, its precisions, and what ranks exchange."""
    ranks = "" if resolved.ranks == 1 else f"|{resolved.ranks} ranks, {resolved.strategy}"
    return f"{resolved.machine}|{resolved.base_precision}|{resolved.compute_dtype}{ranks}"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    speeds: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return speeds
