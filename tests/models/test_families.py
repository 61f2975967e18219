"""Descriptors against the real classes: counts from config.json alone, adapter targets, what PEFT wraps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import adapter, gpu, machine, recipe, report
from support.tiny_families import DECODERS, ENCODERS, FAMILY_CONFIGS

from whet.engine.adapted import trainable_parameters
from whet.engine.models.facts import ModelFacts, match_targets, read_model_facts
from whet.engine.models.families import FAMILIES, UNKNOWN, Unsupported, family_of
from whet.engine.models.memory import estimate_memory
from whet.engine.resolve import resolve

MIXTURES = ("qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v3")


def facts_of(name: str, folder: Path) -> ModelFacts:
    FAMILY_CONFIGS[name]().save_pretrained(folder)
    return read_model_facts(folder)


def meta_model(name: str) -> Any:
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    auto = AutoModelForCausalLM if name in DECODERS else AutoModel
    with torch.device("meta"):
        return auto.from_config(FAMILY_CONFIGS[name]())


def test_every_family_has_a_tiny_model() -> None:
    described = {family.name for family in FAMILIES if family.exact}
    made = {family_of(make().model_type).name for make in FAMILY_CONFIGS.values()}
    assert described == made | {"whisper"}  # counted in test_whisper_facts


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_counts_equal_the_real_model(name: str, tmp_path: Path) -> None:
    import torch

    facts, model = facts_of(name, tmp_path), meta_model(name)
    assert facts.family != UNKNOWN.name and facts.parameters.exact
    assert facts.parameters.total == sum(param.numel() for param in model.parameters())
    assert facts.parameters.embedding == model.get_input_embeddings().weight.numel()
    real: Counter[str] = Counter()
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not (facts.tied and path == "lm_head"):
            pattern = ".".join("*" if part.isdigit() else part for part in path.split("."))
            real[pattern] += sum(param.numel() for param in module.parameters())
    counted = {m.pattern: m.parameters for m in facts.parameters.linear if not m.bare}
    assert counted == real
    stacked = sum(m.parameters for m in facts.parameters.linear if m.bare)
    assert stacked == sum(
        p.numel() for path, p in model.named_parameters() if ".mlp.gate." in path or ".experts." in path
    )


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_default_targets_take_every_layer(name: str, tmp_path: Path) -> None:
    facts = facts_of(name, tmp_path)
    family = family_of(facts.model_type)
    found = match_targets(facts, family.target_modules)
    absent = {target for target, modules in found.items() if not modules}
    # of DeepSeek's two ways to make queries a model has one
    assert absent == ({"q_proj"} if family.attention == "latent" else set())
    taken = {module.pattern for modules in found.values() for module in modules}
    left = {m.pattern for m in facts.parameters.linear} - taken - {"lm_head", "model.layers.*.mlp.gate"}
    if name in MIXTURES:
        # PEFT turns gate_proj, up_proj and down_proj into the experts' parameters and leaves these out
        assert {path.rsplit(".", 1)[-1] for path in left} <= {"gate_proj", "up_proj", "down_proj"}
    else:
        assert left == set()


@pytest.mark.parametrize("targets", ["the family's", "all-linear"])
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_peft_trains_what_was_planned(name: str, targets: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    facts = facts_of(name, tmp_path)
    wanted = "all-linear" if targets == "all-linear" else list(family_of(facts.model_type).target_modules)
    task = "CAUSAL_LM" if name in DECODERS else "FEATURE_EXTRACTION"
    wrapped = get_peft_model(meta_model(name), LoraConfig(r=4, target_modules=wanted, task_type=task))
    real = sum(param.numel() for param in wrapped.parameters() if param.requires_grad)
    assert trainable_parameters(facts, adapter(rank=4, target_modules=wanted)) == real > 0


PUBLISHED = {
    # configurations as published, parameters as the model card or the safetensors index counts them
    "gemma-2-2b": (
        2_614_341_888,
        {"model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
         "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000},
    ),
    "gemma-3-1b": (
        999_885_952,
        {"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
         "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144},
    ),
    "phi-4": (
        14_659_507_200,
        {"model_type": "phi3", "hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40,
         "num_attention_heads": 40, "num_key_value_heads": 10, "vocab_size": 100352,
         "tie_word_embeddings": False},
    ),
    "Mixtral-8x7B": (
        46_702_792_704,
        {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
         "num_experts_per_tok": 2, "tie_word_embeddings": False},
    ),
    "Qwen3-30B-A3B": (
        30_532_122_624,
        {"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
         "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
         "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "mlp_only_layers": [],
         "decoder_sparse_step": 1, "tie_word_embeddings": False},
    ),
    "SmolLM3-3B": (
        3_075_098_624,
        {"model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
         "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 128256},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_from_config_alone(name: str, tmp_path: Path) -> None:
    import json

    total, config = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    facts = read_model_facts(tmp_path)
    assert facts.parameters.total == total


def test_experts_are_not_what_bitsandbytes_quantises(tmp_path: Path) -> None:
    facts = facts_of("mixtral", tmp_path)
    attention = sum(m.parameters for m in facts.parameters.linear if "self_attn" in m.pattern)
    assert facts.parameters.decoder_linear == attention
    assert (facts.experts, facts.experts_per_token, facts.mlp_width) == (4, 2, 2 * 80)


def test_multimodal_gemma_is_said_to_be_one(tmp_path: Path) -> None:
    from transformers import Gemma3Config, SiglipVisionConfig

    text = FAMILY_CONFIGS["gemma3"]()
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
    )
    Gemma3Config(text_config=text, vision_config=vision, image_token_index=100).save_pretrained(tmp_path)
    facts = read_model_facts(tmp_path)
    assert facts.family == "gemma3-multimodal" and facts.model_type == "gemma3"
    assert facts.tied and not facts.parameters.exact
    assert facts.hidden_size == text.hidden_size and facts.head_dim == text.head_dim
    fast = family_of(facts.model_type).fast
    assert isinstance(fast, Unsupported) and "vision" in fast.reason


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
@pytest.mark.parametrize("checkpointing", ["on", "off"])
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_memory_is_estimated_for_every_family(
    name: str, checkpointing: str, precision: str, tmp_path: Path
) -> None:
    facts, on, data = facts_of(name, tmp_path), machine(gpu(80)), report()
    wanted = recipe(
        model__precision=precision,
        training__gradient_checkpointing=checkpointing,
        adapter__target_modules=list(family_of(facts.model_type).target_modules),
    )
    resolved, _ = resolve(wanted, facts, on, data, 1000)
    memory = estimate_memory(facts, wanted.adapter, resolved, data, on)
    parameters = facts.parameters
    bare = sum(m.parameters for m in parameters.linear if m.bare)
    if precision == "bf16":
        assert memory.components["base"] == 2 * parameters.total
    else:
        assert memory.components["base"] >= 2 * (parameters.total - parameters.decoder_linear) >= 2 * bare
    assert memory.exact_parameters and all(size > 0 for size in memory.components.values())
