"""Measured training speeds, kept so that the next plan of the same work can say how long it takes.

The worker calls :func:`record_rate` after a run, the planner :func:`known_rate`. One small JSON file in the
cache.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .settings import settings

if TYPE_CHECKING:
    from .models.facts import ModelFacts
    from .resolve import Resolved

FILE = "rates.json"


def rate_key(facts: ModelFacts, resolved: Resolved) -> str:
    """What a speed depends on: model shape, machine, precisions, micro-batch, checkpointing, trained
    share."""
    parts = (
        facts.digest(),
        resolved.machine,
        resolved.base_precision,
        resolved.compute_dtype,
        f"{resolved.batch_size}x{resolved.longest}",
        "checkpointing" if resolved.gradient_checkpointing else "plain",
        str(resolved.trainable_parameters),
        f"{resolved.threads} threads" if resolved.device == "cpu" else "",
    )
    return "|".join(parts)


def record_rate(facts: ModelFacts, resolved: Resolved, tokens_per_second: float) -> None:
    """Remember a measured speed (tokens of the rows, padding excluded; steady state, start excluded)."""
    path = settings().cache / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rates = _read(path)
        rates[rate_key(facts, resolved)] = round(tokens_per_second, 1)
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text(json.dumps(rates, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        fresh.replace(path)


def known_rate(facts: ModelFacts, resolved: Resolved) -> float | None:
    """Tokens per second measured earlier for the same work on this machine, None when never measured."""
    return _read(settings().cache / FILE).get(rate_key(facts, resolved))


def _read(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    rates: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return rates
