"""The run that is killed: nine steps of a tiny model, four evaluations, five checkpoints, two GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.tiny_models import build_tiny_model
from support.tiny_runs import tiny_recipe, write_chat_rows

from whet.engine.recipe import Recipe


def make_recipe(folder: Path, smoke_test: bool = False, **sections: dict[str, Any]) -> Recipe:
    """A recipe with its model and data in ``folder``, which are written where they are not there yet."""
    model = folder / "llama"
    if not model.exists():
        build_tiny_model(model, wide=True)
    rows, held_out = folder / "rows.jsonl", folder / "held_out.jsonl"
    write_chat_rows(rows, 22)
    write_chat_rows(held_out, 5, seed=1)
    wanted: dict[str, dict[str, Any]] = {
        "data": {"eval": str(held_out)},
        "eval": {"every": 4, "batch_size": 2},
        "training": {"max_steps": 9, "save_every": 2, "keep_checkpoints": 1},
        "export": {"gguf": ["q8_0", "q4_k_m"], "merged": True, "smoke_test": smoke_test},
    }
    for name, values in sections.items():
        wanted[name] = wanted.get(name, {}) | values
    return tiny_recipe(model, rows, **wanted)
