"""Which methods train in several processes. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..methods.preference.section import PreferenceSection

if TYPE_CHECKING:
    from ..recipe import Recipe

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


def alone_because(recipe: Recipe, layout: str) -> str | None:
    """Why a recipe trains in one process only; None where several give the same losses.

    What to do then: ``hardware.gpus: 1``.

    Args:
        recipe: of the run.
        layout: of its rows.
    """
    method = recipe.method
    if method.kind not in SEVERAL:
        return f"{method.kind} has not been shown to give the same losses in several processes"
    if isinstance(method, PreferenceSection) and method.loss_of(layout) == "kto":
        return "method.loss=kto measures how far the model has moved by one process's rows"
    return None
