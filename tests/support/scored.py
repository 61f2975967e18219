"""Prompts with something to learn by rewards, and recipes that train on such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from whet.engine.recipe import Recipe

REWARDS = """
def letters(completions, **kwargs):
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


def long(completions, completion_ids, **kwargs):
    return [good * (len(ids) > 4) for good, ids in zip(letters(completions), completion_ids)]


def raises(completions, **kwargs):
    raise KeyError("the judge is away")


def hangs(completions, **kwargs):
    while True:
        pass


def short(completions, **kwargs):
    return [0.0]


def wants_tests(completions, tests, **kwargs):
    return [0.0 for _ in completions]
"""
"""A file of reward functions, good and bad."""

HEAD = 5.0
"""Times that the head's weights are larger."""


def decided_model(folder: Path) -> Path:
    """A tiny model that can be sure of a token: the head's weights of the usual one keep all nearly alike."""
    import torch
    from safetensors.torch import load_file, save_file
    from support.tiny_models import build_tiny_model

    path = build_tiny_model(folder, "llama")
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"] = torch.mul(weights["lm_head.weight"], HEAD)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def prompts(count: int = 16) -> list[dict[str, Any]]:
    """Texts and conversations in turns, each with an answer."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        asked = f"the river {number} was"
        rows.append({"prompt": asked, "answer": str(number), "facts": {"seen": [number, None]}})
    return rows


def recipe(model: Path, folder: Path, rows: list[dict[str, Any]], **sections: dict[str, Any]) -> Recipe:
    """Three steps of sixteen answers in groups of four, LoRA, fp32, one thread; sections are laid over it."""
    path, functions = folder / "rows.jsonl", folder / "rewards.py"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    functions.write_text(REWARDS, encoding="utf-8")
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_length": 64},
        "data": {"train": str(path)},
        "method": {
            "kind": "grpo", "rewards": [f"{functions}:letters"], "num_generations": 4,
            "max_completion_length": 8, "samples": 2,
        },
        "adapter": {"rank": 16, "alpha": 32},
        "training": {
            "max_steps": 3, "batch_size": 8, "gradient_accumulation": 2, "learning_rate": 1e-2,
            "optimizer": "adamw", "save_every": 50, "warmup": 0, "threads": 1, "scheduler": "constant",
            "weight_decay": 0,
        },
    }  # fmt: skip
    names = values | sections
    return Recipe.model_validate({name: values.get(name, {}) | sections.get(name, {}) for name in names})
