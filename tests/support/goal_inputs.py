"""Goals: machines to propose for, rows to learn, and what holds of every proposal for sound data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from support.plan_inputs import gpu, machine

from whet.engine import api
from whet.engine.goals import Proposal
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched

GIB = 2**30
SMALL, MIDDLE, LARGE = "Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B"

MACHINES = {
    "8 GiB": machine(gpu(8, capability=(8, 6))),
    "24 GiB": machine(gpu(24, capability=(8, 9))),
    "80 GiB": machine(gpu(80)),
    "CPU": machine(),
}

WITHOUT_GGUF = {"hidden_act": "relu"}
"""What llama.cpp does not compute for any family here."""


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def sound(proposal: Proposal) -> None:
    """What holds of every proposal for sound data."""
    assert proposal.plan.blocked() == []
    assert [one for one in proposal.plan.findings if one.severity != "note"] == []
    assert proposal.plan.memory.fits
    assert proposal.plan.recipe == proposal.recipe == Recipe.model_validate(proposal.recipe.model_dump())
    values = proposal.recipe.model_dump(exclude_unset=True)
    for key in proposal.reasons:
        if key != "machine":
            section, _, name = key.partition(".")
            assert name in values[section], f"{key} has a reason and no value"
    said = {f"{section}.{name}" for section, inner in values.items() for name in inner}
    assert said == {key for key in proposal.reasons if key != "machine"}, "each value has a reason"
    commented = proposal.to_yaml()
    assert yaml.safe_load(commented) == yaml.safe_load(api.to_yaml(proposal.recipe))
    for option in proposal.alternatives:
        patched(proposal.recipe, option.patch)
