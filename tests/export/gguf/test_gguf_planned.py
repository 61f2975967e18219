"""What the converter cannot write is refused by the plan, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from support.plan_inputs import chat_recipe, machine, write_chats
from support.respelling import rewrite
from support.tiny_models import FamilyName, build_tiny_model

from whet.engine.findings import Finding
from whet.engine.models.families import family_of
from whet.engine.plan import make_plan


def refusals(folder: Path, model: Path) -> list[Finding]:
    """X04 of a recipe with an adapter of the family's usual targets (experts too) and a GGUF."""
    kind = json.loads((model / "config.json").read_text())["model_type"]
    targets = list(family_of(kind).target_modules)
    data = write_chats(folder / "chats.jsonl", 80)
    recipe = chat_recipe(model, data, export__gguf=["q8_0"], adapter__target_modules=targets)
    return [one for one in make_plan(recipe, machine=machine()).findings if one.id == "X04"]


@pytest.mark.parametrize("family", get_args(FamilyName))
def test_every_family_may_be_planned(tmp_path: Path, family: FamilyName) -> None:
    assert refusals(tmp_path, build_tiny_model(tmp_path / "model", family, tied=True)) == []


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "experts in every layer"),
        ("mixtral", {"hidden_act": "gelu"}, "gelu"),
        ("qwen2", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("gemma2", {"query_pre_attn_scalar": 20}, "query_pre_attn_scalar"),
    ],
)
def test_what_llama_cpp_computes_otherwise_blocks(
    tmp_path: Path, family: FamilyName, change: dict[str, Any], words: str
) -> None:
    model = rewrite(build_tiny_model(tmp_path / "model", family, tied=True), dict, **change)
    found = refusals(tmp_path, model)
    assert [one.severity for one in found] == ["error"]
    assert words in found[0].title
    assert found[0].fix is not None and found[0].fix.patch == {"export.gguf": []}
