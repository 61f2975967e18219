"""Targets are asked for in a recipe or by name, refused where they cannot be made, counted on the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.plan_inputs import LLAMA_8B, model_facts, plan_facts, recipe

from whet.engine.checks import run_checks
from whet.engine.checks.export import targets_possible
from whet.engine.disk import disk_bytes, target_bytes
from whet.engine.errors import WhetError
from whet.engine.job_starts import export_section

MOE = {
    **LLAMA_8B,
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
TARGETS = {"merged_4bit": True, "fp8": True, "adapter_gguf": True}


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ({"adapter__kind": "dora"}, "adapter.kind=dora"),
        ({"adapter__kind": "none"}, "adapter.kind=none"),
        ({"adapter__bias": "all"}, "adapter.bias=all"),
        ({"adapter__modules_to_save": ["lm_head"]}, "lm_head trained whole"),
        ({"adapter__target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens trained whole"),
    ],
)
def test_an_adapter_file_of_more_than_lora_is_no_recipe(patch: dict[str, Any], words: str) -> None:
    assert recipe(**patch).export.adapter_gguf is False
    with pytest.raises((ValidationError, WhetError), match=words):
        recipe(**patch, export__adapter_gguf=True)


@pytest.mark.parametrize("share", [0, 0.96])
def test_a_share_of_memory_has_bounds(share: float) -> None:
    assert recipe(export__maximum_memory_usage=0.95).export.maximum_memory_usage == 0.95
    with pytest.raises((ValidationError, WhetError), match="maximum_memory_usage"):
        recipe(export__maximum_memory_usage=share)


def test_an_adapter_of_experts_is_refused_before_training(tmp_path: Path) -> None:
    model = model_facts(tmp_path / "moe", MOE)
    wanted = recipe(export__adapter_gguf=True, adapter__target_modules=["q_proj", "gate_proj", "down_proj"])
    found = [one for one in run_checks(plan_facts(model, wanted=wanted)) if one.id == "X04"]
    assert [one.severity for one in found] == ["error"] and "experts" in found[0].title
    assert found[0].fix is not None
    assert found[0].fix.patch == {"export.adapter_gguf": False, "export.gguf": ["q8_0"]}
    attention = recipe(export__adapter_gguf=True, adapter__target_modules=["q_proj", "v_proj"])
    assert not [one for one in run_checks(plan_facts(model, wanted=attention)) if one.id == "X04"]


def test_an_adapter_file_of_an_unknown_architecture_is_refused_before_training(tmp_path: Path) -> None:
    wanted = recipe(export__adapter_gguf=True)
    facts = plan_facts(model_facts(tmp_path / "m"), wanted=wanted, gguf_refusal="It is not known.")
    (found,) = [one for one in run_checks(facts) if one.id == "X04"]
    assert found.fix is not None and found.fix.patch["export.adapter_gguf"] is False


def test_targets_of_an_embedding_model_are_refused_before_training(tmp_path: Path) -> None:
    wanted = recipe(export__fp8=True, method={"kind": "embedding"})
    facts = plan_facts(model_facts(tmp_path / "m"), wanted=recipe(export__fp8=True))
    assert not [one for one in run_checks(facts) if one.id == "X04"]
    (found,) = list(targets_possible.run(replace(facts, recipe=wanted)))
    assert found.fix is not None and found.fix.patch == {"export.merged": True, "export.fp8": False}


def test_what_targets_take_on_the_disk(tmp_path: Path) -> None:
    model = model_facts(tmp_path / "8b")
    wanted = recipe(**{f"export__{name}": True for name in TARGETS})
    facts = plan_facts(model, wanted=wanted)
    needs, total = disk_bytes(wanted, facts.resolved, model), model.parameters.total
    assert needs["merged"] == 2 * total  # there while the others are made
    assert 0.6 * total < needs["merged_4bit"] < 0.8 * total
    assert 1.1 * total < needs["fp8"] < 1.2 * total
    sizes = target_bytes(wanted, facts.resolved, model)
    assert list(sizes) == ["merged", *TARGETS] and sizes["fp8"] == needs["fp8"]
    assert sizes["adapter_gguf"] == 4 * facts.resolved.trainable_parameters
    assert "adapter_gguf" not in target_bytes(recipe(adapter__kind="dora"), facts.resolved, model)
    assert "fp8" not in disk_bytes(recipe(), facts.resolved, model)


def test_targets_stand_among_the_gguf_types() -> None:
    section = export_section(["fp8", "Q4_K_M", "adapter_gguf"], False, True, None, 0.5)
    assert section.gguf == ["q4_k_m"] and section.fp8 and section.adapter_gguf and not section.merged_4bit
    assert section.maximum_memory_usage == 0.5
    with pytest.raises(WhetError) as refusal:
        export_section(["fp9"], False, True, None, None)
    assert refusal.value.code == "gguf.unknown_type"
    with pytest.raises(WhetError) as refusal:
        export_section(["fp8"], False, True, None, 1.5)
    assert refusal.value.code == "export.memory_share"
