"""Which method a goal's rows are trained by, and what whet knows of each: its recipe, its usual file."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.uses import Use
from ..errors import WhetError
from ..recipe import Recipe
from ..recipe_files import load_recipe
from .draft import Look
from .goal import ASKED, Goal

RECIPES = {
    "embedding": "embedding",
    "classification": "classification",
    "token_classification": "token-classification",
    "reranker": "reranker",
    "preference": "preference",
    "reward": "reward",
}
"""Methods beside supervised fine-tuning that follow from data alone, and their shipped recipes."""
USUAL_MODELS = {
    "embedding": (
        "sentence-transformers/all-MiniLM-L6-v2",
        "sentence-transformers/all-mpnet-base-v2",
        "BAAI/bge-m3",
        "google/embeddinggemma-300m",
        "Qwen/Qwen3-Embedding-0.6B",
    ),
    "classification": (
        "answerdotai/ModernBERT-base",
        "google-bert/bert-base-uncased",
        "FacebookAI/xlm-roberta-base",
    ),
    "token_classification": (
        "answerdotai/ModernBERT-base",
        "google-bert/bert-base-cased",
        "FacebookAI/xlm-roberta-base",
    ),
    "reranker": (
        "cross-encoder/ms-marco-MiniLM-L6-v2",
        "BAAI/bge-reranker-v2-m3",
        "answerdotai/ModernBERT-base",
    ),
}
"""Models of the hub that people begin with, the smallest first; the first is the shipped recipe's."""
OWN_MODELS = {"speech": "hears", "tts": "speaks"}
"""Methods that want a model of their own kind, and what it does."""
SENSES = ("vision", "speech", "tts")
"""Methods that are not proposed, since their models are of few kinds."""
FROM_CHAT = ("preference", "reward")
"""Of these, those that begin with a model that answers."""


def method_of(goal: Goal, look: Look, asked: str | None) -> tuple[str, str]:
    """The method, and why it is that.

    Args:
        goal: may name one.
        look: at the rows.
        asked: by an override of method.kind.

    Raises:
        WhetError: ``goal.method`` for one that whet does not propose, asked for or by the rows.
    """
    named = asked or (None if goal.method == "auto" else goal.method)
    if named is not None:
        if named != "sft" and named not in RECIPES:
            raise WhetError(
                "goal.method",
                f"{named!r} is none of the methods that follow from data alone: sft, {', '.join(RECIPES)}.",
                "Leave it at auto, or begin with a recipe of that method: whet recipes",
            )
        return named, ASKED
    for use in look.uses:
        if use.method in OWN_MODELS:
            raise WhetError(
                "goal.method",
                f"The rows ({', '.join(use.columns.values())}) are made for method.kind={use.method}, and a "
                f"goal does not choose a model that {OWN_MODELS[use.method]}.",
                f"Begin with its recipe, whet recipes --copy {use.method}: set model.name and data.train.",
            )
        if use.method == "sft":
            break
        if use.method in RECIPES:
            return use.method, f"the rows are {use.layout} ({', '.join(use.columns.values())})"
    kind = look.uses[0].method if look.uses else ""
    if kind in SENSES:
        raise WhetError(
            "goal.method",
            f"These rows are {look.uses[0].layout}, made for method.kind={kind}, which begins with a model "
            "of its own kind.",
            f"Begin with its recipe: whet recipes --copy {kind}",
        )
    return "sft", ASKED


def recipe_of(method: str) -> Recipe:
    """The shipped recipe of a method beside supervised fine-tuning."""
    return load_recipe(RECIPES[method])


def proposable(uses: Sequence[Use]) -> list[str]:
    """Methods among these that can be proposed."""
    return [use.method for use in uses if use.method == "sft" or use.method in RECIPES]
