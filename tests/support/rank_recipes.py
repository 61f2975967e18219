"""Recipes of methods beside supervised fine-tuning, for several processes.

Seven steps of two micro-batches of two rows, fp32, no dropout; 22 rows, so that an epoch's last step has one
micro-batch only.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

from support.comparisons import pairs, ratings

WORDS = ["red", "green", "blue", "black", "white", "brown", "purple", "car", "house", "tree", "boat", "lamp"]
COUPLES = [(one, other) for one, other in zip(WORDS * 2, WORDS[1:] * 2 + WORDS, strict=False)]
ROWS, HELD_OUT = 22, 5
_numbers = count()

Rows = list[dict[str, Any]]


def method_recipe(folder: Path, model: Path, kind: str, train: Rows, held_out: Rows, **method: Any) -> Any:
    """As JSON; the rows are written into ``folder``."""
    files = {}
    for name, rows in {"train": train[:ROWS], "eval": held_out[:HELD_OUT]}.items():
        files[name] = str(folder / f"{kind}-{next(_numbers)}.jsonl")
        Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "name": "tiny",
        "model": {"name": str(model), "max_length": 64},
        "data": files,
        "method": {"kind": kind, **method},
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.0},
        "eval": {"every": 6, "batch_size": 2},
        "training": {
            "max_steps": 7,
            "batch_size": 2,
            "gradient_accumulation": 2,
            "learning_rate": 5e-3,
            "optimizer": "adamw",
            "save_every": 7,
            "warmup": 0,
            "threads": 1,
        },
    }


def compared(folder: Path, model: Path, **method: Any) -> Any:
    """Preferences."""
    return method_recipe(folder, model, "preference", pairs(), pairs()[ROWS:], **method)


def rewarded(folder: Path, model: Path) -> Any:
    """A reward model."""
    return method_recipe(folder, model, "reward", pairs(), pairs()[ROWS:])


def rated(folder: Path, model: Path) -> Any:
    """Answers with a verdict each."""
    return method_recipe(folder, model, "preference", ratings(), ratings()[ROWS:], loss="kto")


def sorted_texts(folder: Path, model: Path) -> Any:
    """A classifier of texts."""
    rows = [
        {"text": f"{one} {other}", "label": "animal" if number % 3 else "thing"}
        for number, (one, other) in enumerate(COUPLES)
    ]
    return method_recipe(folder, model, "classification", rows, rows)


def sorted_words(folder: Path, model: Path) -> Any:
    """A classifier of tokens."""
    rows: Rows = [
        {"tokens": [one, other, "in", "rome"], "ner_tags": ["B-PER", "I-PER", "O", "B-LOC"]}
        if number % 2
        else {"tokens": ["the", other], "ner_tags": ["O", "B-LOC"]}
        for number, (one, other) in enumerate(COUPLES)
    ]
    return method_recipe(folder, model, "token_classification", rows, rows)


def embedded(folder: Path, model: Path) -> Any:
    """An embedding model, each positive among those of its micro-batch."""
    rows = [
        {"anchor": f"{one} {other}", "positive": f"{number} is {other} {one}"}
        for number, (one, other) in enumerate(COUPLES)
    ]
    return method_recipe(folder, model, "embedding", rows, rows)


def ranked(folder: Path, model: Path) -> Any:
    """A reranker."""
    rows = [
        {"query": f"what {one}", "positive": f"good {other} {number}", "negative": f"bad {one}"}
        for number, (one, other) in enumerate(COUPLES)
    ]
    recipe = method_recipe(folder, model, "reranker", rows, rows)
    # At the others' rate its gradients' rounding, 3e-7, grows to 3e-5 within these steps.
    recipe["training"]["learning_rate"] = 1e-3
    return recipe
