"""Which methods train in several processes. Light: no torch."""

from __future__ import annotations

SEVERAL = frozenset(
    {
        "sft",
        "preference",
        "reward",
        "classification",
        "token_classification",
        "embedding",
        "reranker",
        "vision",
        "speech",
        "tts",
    }
)
"""Their losses with several processes are those of one, which tests hold."""


def alone_because(method: str) -> str | None:
    """Why a method trains in one process only; None where several give the same losses.

    What to do then: ``hardware.gpus: 1``.
    """
    if method in SEVERAL:
        return None
    return f"{method} has not been shown to give the same losses in several processes"
