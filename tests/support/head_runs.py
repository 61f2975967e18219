"""Runs of heads on tiny encoders: texts of very different lengths, with classes, tags and documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whet.engine.methods.classification.job import ClassificationTraining
from whet.engine.methods.reranker.job import RerankerTraining
from whet.engine.methods.token_classification.job import TokenClassificationTraining
from whet.engine.recipe import Recipe

WORDS = ["dog", "lamp", "rome", "bird", "a", "of", "green", "house", "sea", "to"]
LENGTHS = (3, 1, 40, 7, 2, 5, 11, 1, 4, 6, 2)
"""Words of a text: one is cut, and some are next to nothing."""
STEPS = 6


def text(number: int, length: int) -> str:
    return " ".join(WORDS[(number + 3 * place) % len(WORDS)] for place in range(length))


TEXTS = [text(number, length) for number, length in enumerate(LENGTHS)]


def sorted_texts() -> list[dict[str, Any]]:
    return [{"text": one, "label": "abc"[number % 3 if number else 0]} for number, one in enumerate(TEXTS)]


def sorted_pairs() -> list[dict[str, Any]]:
    others = reversed(TEXTS)
    return [
        {"premise": one, "hypothesis": other, "label": number % 2}
        for number, (one, other) in enumerate(zip(TEXTS, others, strict=True))
    ]


def many_classes() -> list[dict[str, Any]]:
    return [
        {"text": one, "labels": [name for name in "abc" if (number + ord(name)) % 3 or number % 2]}
        for number, one in enumerate(TEXTS)
    ]


def tagged() -> list[dict[str, Any]]:
    return [
        {"tokens": one.split(), "ner_tags": [("O", "B-LOC", "B-PER")[len(word) % 3] for word in one.split()]}
        for one in TEXTS
    ]


def triplets() -> list[dict[str, Any]]:
    return [
        {"query": f"what {number}", "positive": one, "negative": f"{one} not {number}"}
        for number, one in enumerate(TEXTS)
    ]


def scored() -> list[dict[str, Any]]:
    return [
        {"query": f"what {number}", "document": one, "score": number / 10} for number, one in enumerate(TEXTS)
    ]


CASES: dict[str, tuple[Any, Callable[[], list[dict[str, Any]]], dict[str, Any]]] = {
    "classes": (ClassificationTraining, sorted_texts, {"class_weights": "balanced"}),
    "pairs": (ClassificationTraining, sorted_pairs, {}),
    "label sets": (ClassificationTraining, many_classes, {"class_weights": "balanced"}),
    "tags": (TokenClassificationTraining, tagged, {}),
    "triplets": (RerankerTraining, triplets, {}),
    "scores": (RerankerTraining, scored, {}),
    "distances": (RerankerTraining, scored, {"loss": "mse"}),
}
KINDS = {
    ClassificationTraining: "classification",
    TokenClassificationTraining: "token_classification",
    RerankerTraining: "reranker",
}


def recipe(case: str, model: Path, folder: Path, **sections: dict[str, Any]) -> Recipe:
    kind, rows, method = CASES[case]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_length": 32},
        "data": {"train": str(path), "eval": str(path)},
        "method": {"kind": KINDS[kind], **method},
        "adapter": {"rank": 4, "alpha": 8},
        "eval": {"every": 3, "batch_size": 4},
        "training": {
            "max_steps": STEPS, "batch_size": 3, "gradient_accumulation": 2, "learning_rate": 2e-3,
            "optimizer": "adamw", "save_every": 2, "warmup": 0, "threads": 1,
        },
    }  # fmt: skip
    return Recipe.model_validate({name: values.get(name, {}) | sections.get(name, {}) for name in values})
