"""Compared and rated answers with something to learn in them, and recipes that train on such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.tiny_runs import events_of

from whet.engine.recipe import Recipe
from whet.engine.runs.events import StepEvent
from whet.engine.runs.store import RunDir

SUBJECTS = ["the river", "a small house", "the old road", "my friend", "the long day", "a good book"]
VERBS = ["was", "is", "will be", "had been", "may be"]


def pairs(conversations: bool = True) -> list[dict[str, Any]]:
    """Answers that say yes are better than those that say no."""
    rows: list[dict[str, Any]] = []
    for subject in SUBJECTS:
        for number, verb in enumerate(VERBS):
            question, good, bad = (
                f"{subject} {verb}",
                f"yes {subject} all" + " day" * number,
                f"no {verb} not",
            )
            if conversations:
                before = [{"role": "user", "content": question}]
                rows.append(
                    {
                        "chosen": [*before, {"role": "assistant", "content": good}],
                        "rejected": [*before, {"role": "assistant", "content": bad}],
                    }
                )
            else:
                rows.append({"prompt": question, "chosen": good, "rejected": bad})
    return rows


def ratings() -> list[dict[str, Any]]:
    """The same answers, each with its verdict."""
    return [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in pairs(conversations=False)
        for name in ("chosen", "rejected")
    ]


def recipe(model: Path, folder: Path, rows: list[dict[str, Any]], **sections: dict[str, Any]) -> Recipe:
    """Two steps of eight rows by preference training, LoRA, fp32, one thread; sections are laid over it."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_length": 64},
        "data": {"train": str(path)},
        "method": {"kind": "preference"},
        "adapter": {"rank": 8, "alpha": 16},
        "training": {
            "max_steps": 2, "batch_size": 4, "gradient_accumulation": 2, "learning_rate": 5e-3,
            "optimizer": "adamw", "save_every": 3, "warmup": 0, "threads": 1,
        },
    }  # fmt: skip
    names = values | sections
    return Recipe.model_validate({name: values.get(name, {}) | sections.get(name, {}) for name in names})


def steps(run: RunDir) -> list[StepEvent]:
    """What the run told of its optimizer steps."""
    return [event for event in events_of(run) if isinstance(event, StepEvent)]
