"""Every family and its variants: llama.cpp's distribution of the f32 file against transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from gguf import GGUFReader
from support.gguf_logits import kl, llama_log_probs, model_log_probs
from support.gguf_variants import LINEAR, LLAMA3, SHARED_HEAD, VARIANTS, YARN, longrope
from support.respelling import fuse_experts, rewrite
from support.tiny_models import FamilyName, build_tiny_model

from whet.engine.errors import WhetError
from whet.engine.export.gguf.architectures import find_architecture, supported_architecture
from whet.engine.export.gguf.convert import convert
from whet.engine.export.gguf.tensors import places

IDS = np.random.default_rng(0).integers(0, 390, 96).tolist()
LONG = np.random.default_rng(1).integers(0, 390, 300).tolist()
"""Beyond llama.cpp's smallest context, 256: that is where it takes the long factors."""

SAME = 1e-9
ROUNDED_GELU = 1e-7
"""Gemma's activation: ggml reads GELU from a table of half-precision numbers."""


def gate(family: str) -> float:
    return ROUNDED_GELU if family.startswith("gemma") else SAME


def check(folder: Path, family: FamilyName, ids: list[int] = IDS, **changes: Any) -> Path:
    """Build, convert, compare; the GGUF."""
    model = build_tiny_model(folder / "model", family, **{"tied": family in SHARED_HEAD, **changes})
    return compare(model, folder / "model.gguf", gate(family), ids)


def compare(model: Path, out: Path, limit: float, ids: list[int] = IDS) -> Path:
    gguf = convert(model, out, "f32")
    assert kl(model_log_probs(model, ids), llama_log_probs(gguf, ids)) < limit
    return gguf


def field(path: Path, key: str) -> Any:
    return GGUFReader(path).fields[key].contents()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", get_args(FamilyName))
def test_same_distribution(tmp_path: Path, family: FamilyName, tied: bool) -> None:
    if family in SHARED_HEAD and not tied:
        with pytest.raises(WhetError, match="no output layer of its own"):
            check(tmp_path, family, tied=False)
        return
    names = {tensor.name for tensor in GGUFReader(check(tmp_path, family, tied=tied)).tensors}
    assert ("output.weight" in names) is not tied


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(tmp_path: Path, variant: str) -> None:
    family, changes = VARIANTS[variant]
    check(tmp_path, family, **changes)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_long_factors_beyond_the_original_context(tmp_path: Path, family: FamilyName) -> None:
    changes = {"original_max_position_embeddings": 256} if family == "phi3" else {}
    check(tmp_path, family, LONG, rope_parameters=longrope(8), **changes)


def test_a_window_ends_the_context(tmp_path: Path) -> None:
    """llama.cpp has no window for Mistral, and up to the window both compute the same."""
    path = check(tmp_path, "mistral", IDS, sliding_window=100)
    assert field(path, "llama.context_length") == 100
    model = tmp_path / "model"
    assert kl(model_log_probs(model, LONG), llama_log_probs(path, LONG)) > 1e-4


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({"sliding_window": 100}, 512),
        ({"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1}, 100),
        ({"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 2}, 512),
    ],
)
def test_windows_that_are_in_force(tmp_path: Path, changes: dict[str, Any], context: int) -> None:
    assert field(check(tmp_path, "qwen2", **changes), "qwen2.context_length") == context


MISTAKES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2-capped": ("gemma2-linear", {"attn_logit_softcapping": 5.5}),
    "gemma2-window": ("gemma2-linear", {"sliding_window": 17}),
    "gemma2-windows": ("gemma2-other-windows", {"layer_types": ["sliding_attention", "full_attention"]}),
    "gemma2-epsilon": ("gemma2-linear", {"rms_norm_eps": 1e-4}),
    "gemma3-windows": ("gemma3-other-windows", {"layer_types": ["sliding_attention"] * 3}),
    "gemma3-local-base": ("gemma3-scaled", {"rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    }}),
    "gemma3-scaling": ("gemma3-scaled", {"rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    }}),
    "phi3-factors": ("phi3-short", {"rope_parameters": longrope(8, attention_factor=1.1)}),
    "phi3-original": ("phi3-short", {"original_max_position_embeddings": 128}),
    "granite-residual": ("granite-biased", {"residual_multiplier": 0.2201}),
    "granite-attention": ("granite-biased", {"attention_multiplier": 0.033}),
    "granite-embedding": ("granite-biased", {"embedding_multiplier": 12.01}),
    "mixtral-experts-used": ("mixtral-head-dim", {"num_experts_per_tok": 2}),
    "qwen3-attention-factor": ("qwen3-yarn-attention-factor", {"rope_parameters": YARN}),
}  # fmt: skip
"""Variants, converted as if the config said something else: the gates must see it, or they prove nothing."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_gates_see_mistakes(tmp_path: Path, mistake: str) -> None:
    variant, wrong = MISTAKES[mistake]
    family, changes = VARIANTS[variant]
    model = build_tiny_model(tmp_path / "model", family, **{"tied": family in SHARED_HEAD, **changes})
    right = model_log_probs(model, IDS)
    gguf = convert(rewrite(model, dict, **wrong), tmp_path / "model.gguf", "f32")
    assert kl(right, llama_log_probs(gguf, IDS)) > gate(family)


# What checkpoints call things


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_in_both_spellings(tmp_path: Path, family: FamilyName) -> None:
    model = build_tiny_model(tmp_path / "model", family)
    published = tensors(convert(model, tmp_path / "published.gguf", "f32"))
    fused = tensors(convert(rewrite(model, fuse_experts), tmp_path / "fused.gguf", "f32"))
    assert published.keys() == fused.keys()
    assert all((published[name] == fused[name]).all() for name in published)
    assert published["blk.1.ffn_gate_exps.weight"].shape[0] == 4


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}


def test_routers_stay_exact(tmp_path: Path) -> None:
    path = convert(build_tiny_model(tmp_path / "model", "qwen3_moe"), tmp_path / "model.gguf", "f16")
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert types["blk.0.ffn_gate_inp.weight"] == "F32" and types["blk.0.ffn_up_exps.weight"] == "F16"


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_multimodal_gemma(tmp_path: Path, prefix: str) -> None:
    import torch

    model = build_tiny_model(tmp_path / "model", "gemma3_text", tied=True)
    text = tensors(convert(model, tmp_path / "text.gguf", "f32"))
    raw = json.loads((model / "config.json").read_text())

    def multimodal(weights: dict[str, Any]) -> dict[str, Any]:
        renamed = {name.replace("model.", prefix, 1): value for name, value in weights.items()}
        return renamed | {"vision_tower.vision_model.post_layernorm.weight": torch.ones(4)}

    rewrite(model, multimodal, model_type="gemma3", text_config=raw, vision_config={})
    found = tensors(convert(model, tmp_path / "multimodal.gguf", "f32"))
    assert found.keys() == text.keys() and all((found[name] == text[name]).all() for name in text)


OLD_SPELLINGS: dict[str, tuple[FamilyName, dict[str, Any], dict[str, Any]]] = {
    "gemma": ("gemma", {}, {"hidden_act": "gelu", "rope_parameters": None, "rope_theta": 10000.0}),
    "gemma3": ("gemma3_text", {}, {
        "rope_parameters": None, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "layer_types": None,
        "sliding_window_pattern": 3,
    }),
    "phi3": ("phi3", {"original_max_position_embeddings": 256}, {
        "rope_parameters": None, "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "su"} | {
            key: value for key, value in longrope(6).items() if key != "rope_type"
        },
    }),
}  # fmt: skip


@pytest.mark.parametrize("family", OLD_SPELLINGS)
def test_configs_of_before(tmp_path: Path, family: str) -> None:
    name, changes, old = OLD_SPELLINGS[family]
    model = build_tiny_model(tmp_path / "model", name, tied=True, **changes)
    rewrite(model, dict, **old)
    compare(model, tmp_path / "model.gguf", gate(name))


# Refusals, from the config alone

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 8,
    "max_position_embeddings": 512,
}  # fmt: skip

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "qwen2-llama3": ("qwen2", {"rope_parameters": LLAMA3}, "llama3"),
    "smollm3-llama3": ("smollm3", {"rope_parameters": LLAMA3}, "llama3"),
    "gemma3-yarn": ("gemma3_text", {"rope_scaling": YARN}, "yarn"),
    "gemma3-windows-scaled": ("gemma3_text", {"rope_parameters": {"sliding_attention": LINEAR}}, "linear"),
    "gemma2-both-ways": ("gemma2", {"use_bidirectional_attention": True}, "causal"),
    "gemma2-scale": ("gemma2", {"query_pre_attn_scalar": 20}, "query_pre_attn_scalar=20"),
    "gemma2-uncapped": ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping"),
    "gemma-exact-gelu": ("gemma2", {"hidden_activation": "gelu"}, "gelu"),
    "gemma-untied": ("gemma", {"tie_word_embeddings": False}, "output layer"),
    "qwen3-biased": ("qwen3", {"attention_bias": True}, "attention_bias"),
    "smollm3-biased": ("smollm3", {"mlp_bias": True}, "mlp_bias"),
    "smollm3-rotation": ("smollm3", {"no_rope_layers": [1, 0] * 4}, "no_rope_layers"),
    "smollm3-interval": ("smollm3", {"no_rope_layer_interval": 2}, "unrotated"),
    "moe-dense-layers": ("qwen3_moe", {"mlp_only_layers": [1], "norm_topk_prob": True}, "mlp_only_layers"),
    "moe-unnormed": ("qwen3_moe", {}, "norm_topk_prob"),
    "qwen2-heads": ("qwen2", {"head_dim": 24}, "24"),
    "phi3-factors": ("phi3", {"rope_parameters": longrope(5)}, "5 short"),
    "llama-sizes": ("llama", {"intermediate_size": None}, "intermediate_size"),
    "llama-partial": ("llama", {"partial_rotary_factor": 0.5}, "0.5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case: str) -> None:
    model_type, changes, words = REFUSED[case]
    reason = supported_architecture(model_type, SIZES | changes)
    assert reason is not None and words in reason


def test_an_unknown_family_is_told_all_that_is_known() -> None:
    reason = supported_architecture("deepseek_v3", SIZES)
    assert reason is not None and "deepseek_v3" in reason
    assert all(family in reason for family in get_args(FamilyName))


# What adapters and importance matrices ask


def test_places_of_modules() -> None:
    config = {"model_type": "mixtral", **SIZES, "num_local_experts": 4}
    found = places(*find_architecture(config))
    assert found["model.layers.7.self_attn.q_proj.weight"].name == "blk.7.attn_q.weight"
    expert = found["model.layers.0.block_sparse_moe.experts.3.w2.weight"]
    assert expert.stacked and expert.name == "blk.0.ffn_down_exps.weight"
    assert not found["model.layers.0.mlp.experts.down_proj"].stacked
    assert found["lm_head.weight"].name == "output.weight"
