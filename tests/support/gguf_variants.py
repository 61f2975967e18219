"""Variants of every family that the GGUF converter knows: what the tests build, compare and hold against
llama.cpp's own converter."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from support.tiny_models import FamilyName

SHARED_HEAD = ("gemma", "gemma2")
"""Families of which llama.cpp knows no other head than the embedding."""

LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


def longrope(pairs: int, **more: Any) -> dict[str, Any]:
    draw = np.random.default_rng(2)
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 256,
        "short_factor": draw.uniform(1.0, 2.0, pairs).tolist(),
        "long_factor": draw.uniform(2.0, 9.0, pairs).tolist(),
        **more,
    }


VARIANTS: dict[str, tuple[FamilyName, dict[str, Any]]] = {
    "llama-head-dim": ("llama", {"head_dim": 24}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-longrope": ("llama", {"rope_parameters": longrope(8)}),
    "mistral-window": ("mistral", {"sliding_window": 100}),
    "mistral-llama3": ("mistral", {"rope_parameters": LLAMA3}),
    "mistral-heads": ("mistral", {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 8}),
    "mixtral-llama3": ("mixtral", {"rope_parameters": LLAMA3}),
    "mixtral-head-dim": ("mixtral", {"head_dim": 24, "num_experts_per_tok": 3}),
    "qwen2-biased": ("qwen2", {"rms_norm_eps": 1e-5}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3-linear": ("qwen3", {"rope_parameters": LINEAR}),
    "qwen3-yarn": ("qwen3", {"rope_parameters": YARN}),
    "qwen3-yarn-attention-factor": ("qwen3", {"rope_parameters": {**YARN, "attention_factor": 1.4}}),
    "qwen3-yarn-mscale": ("qwen3", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    "qwen3-moe-yarn": ("qwen3_moe", {"rope_parameters": YARN, "head_dim": 24}),
    "gemma-linear": ("gemma", {"rope_parameters": LINEAR}),
    "gemma2-linear": ("gemma2", {"rope_parameters": LINEAR}),
    "gemma2-yarn": ("gemma2", {"rope_parameters": YARN}),
    "gemma2-other-windows": ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}),
    "gemma3-scaled": ("gemma3_text", {"rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    }}),
    "gemma3-other-windows": ("gemma3_text", {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }),
    "gemma3-capped": ("gemma3_text", {"final_logit_softcapping": 3.0}),
    "phi3-partial": ("phi3", {"rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
    }}),
    "phi3-short": ("phi3", {"rope_parameters": longrope(8), "original_max_position_embeddings": 256}),
    "phi3-wide-window": ("phi3", {"sliding_window": 400}),
    "phi4-mini": ("phi3", {
        "tied": True,
        "original_max_position_embeddings": 256,
        "rope_parameters": longrope(6, partial_rotary_factor=0.75),
    }),
    "smollm3-yarn": ("smollm3", {"rope_parameters": YARN}),
    "granite-biased": ("granite", {"attention_bias": True, "mlp_bias": True}),
    "granite-llama3": ("granite", {"rope_parameters": LLAMA3}),
}  # fmt: skip

FAMILIES: dict[str, tuple[FamilyName, dict[str, Any]]] = {
    **{family: (family, {"tied": True}) for family in get_args(FamilyName)},
    **VARIANTS,
}
"""Every family as it is, then every variant: name -> arguments of ``build_tiny_model``."""
