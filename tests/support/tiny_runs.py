"""Real runs of tiny models: recipe, plan, run directory and the context a worker would hand to its job."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.tiny_models import TEXT

from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.context import RunContext
from whet.engine.runs.events import Event, EventLog, read_events
from whet.engine.runs.store import RunDir, RunStore


def write_chat_rows(path: Path, rows: int = 24, seed: int = 0) -> Path:
    """A JSONL file of short conversations of uneven length."""
    words = TEXT.read_text(encoding="utf-8").split()
    draw = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            question = " ".join(draw.choices(words, k=draw.randint(1, 8)))
            answer = " ".join(draw.choices(words, k=draw.randint(1, 14)))
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def tiny_recipe(base: Path, rows: Path, **sections: dict[str, Any]) -> Recipe:
    """Six steps of four rows in two micro-batches, LoRA with dropout, fp32, one thread."""
    defaults: dict[str, dict[str, Any]] = {
        "model": {"name": str(base), "max_length": 128},
        "data": {"train": str(rows)},
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "training": {
            "max_steps": 6,
            "batch_size": 2,
            "gradient_accumulation": 2,
            "learning_rate": 5e-3,
            "optimizer": "adamw",
            "save_every": 2,
            "warmup": 1,
            "threads": 1,
        },
    }
    for name, values in sections.items():
        defaults[name] = defaults.get(name, {}) | values
    return Recipe.model_validate({"name": "tiny", **defaults})


def create_run(recipe: Recipe) -> RunDir:
    """Plan it and create its directory under ``$WHET_HOME``."""
    return RunStore().create(make_plan(recipe), "test")


def next_attempt(run: RunDir) -> RunContext:
    """What the worker does before the job: number the attempt, open the event log."""
    attempt = run.read_state().attempt + 1
    run.write_state(status="running", attempt=attempt)
    return RunContext(run, attempt, EventLog(run.events, attempt))


def events_of(run: RunDir) -> list[Event]:
    return read_events(run.events)[0]
