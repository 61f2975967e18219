"""Which methods train in several processes. Light: no torch."""

from __future__ import annotations

SEVERAL = frozenset({"sft"})
"""Their losses with several processes are those of one, which tests hold."""

_WHY_NOT = "its training has not been shown to give the same losses in several processes"


def alone_because(method: str) -> str | None:
    """Why a method trains in one process only; None where several give the same losses.

    What to do then: ``hardware.gpus: 1``.
    """
    return None if method in SEVERAL else f"{method}: {_WHY_NOT}"
