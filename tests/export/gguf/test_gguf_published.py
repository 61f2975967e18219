"""The shapes that people bring: published configs are supported, and read as their classes read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFWriter

from whet.engine.export.gguf.architectures import find_architecture


def shape(layers: int, width: int, inner: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": kv, **more,
    }  # fmt: skip


LONG = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
LLAMA_32 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip

PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama 3.2 1B": (
        shape(16, 2048, 8192, 32, 8, model_type="llama", head_dim=64, hidden_act="silu", rope_theta=500000.0,
              max_position_embeddings=131072, rope_scaling=LLAMA_32, tie_word_embeddings=True),
        {"context_length": 131072, "attention.key_length": 64, "rope.freq_base": 500000.0},
    ),
    "Mistral 7B v0.1": (
        shape(32, 4096, 14336, 32, 8, model_type="mistral", sliding_window=4096,
              max_position_embeddings=32768, rms_norm_eps=1e-5),
        {"context_length": 4096, "attention.key_length": 128},
    ),
    "Mistral Nemo": (
        shape(40, 5120, 14336, 32, 8, model_type="mistral", head_dim=128, sliding_window=None,
              max_position_embeddings=1024000, rope_theta=1000000.0, rms_norm_eps=1e-5),
        {"context_length": 1024000, "attention.key_length": 128},
    ),
    "Mixtral 8x7B": (
        shape(32, 4096, 14336, 32, 8, model_type="mixtral", sliding_window=None, num_local_experts=8,
              num_experts_per_tok=2, max_position_embeddings=32768, rope_theta=1000000.0),
        {"expert_count": 8, "expert_used_count": 2, "context_length": 32768},
    ),
    "Qwen2.5 0.5B": (
        shape(24, 896, 4864, 14, 2, model_type="qwen2", use_sliding_window=False, sliding_window=32768,
              max_window_layers=24, max_position_embeddings=32768, tie_word_embeddings=True),
        {"context_length": 32768, "attention.key_length": 64},
    ),
    "Qwen3 0.6B": (
        shape(28, 1024, 3072, 16, 8, model_type="qwen3", head_dim=128, use_sliding_window=False,
              sliding_window=None, max_window_layers=28, max_position_embeddings=40960),
        {"context_length": 40960, "attention.key_length": 128},
    ),
    "Qwen3 30B A3B": (
        shape(48, 2048, 6144, 32, 4, model_type="qwen3_moe", head_dim=128, num_experts=128,
              num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True, mlp_only_layers=[],
              decoder_sparse_step=1, use_sliding_window=False, max_position_embeddings=40960),
        {"expert_count": 128, "expert_feed_forward_length": 768, "context_length": 40960},
    ),
    "Gemma 2B": (
        shape(18, 2048, 16384, 8, 1, model_type="gemma", head_dim=256, hidden_act="gelu",
              hidden_activation=None, max_position_embeddings=8192),
        {"attention.key_length": 256, "context_length": 8192},
    ),
    "Gemma 2 27B": (
        shape(46, 4608, 36864, 32, 16, model_type="gemma2", head_dim=128, query_pre_attn_scalar=144,
              sliding_window=4096, hidden_activation="gelu_pytorch_tanh", attn_logit_softcapping=50.0,
              final_logit_softcapping=30.0, max_position_embeddings=8192),
        {"attention.sliding_window": 4096, "context_length": 8192, "attn_logit_softcapping": 50.0},
    ),
    "Gemma 3 1B": (
        shape(26, 1152, 6912, 4, 1, model_type="gemma3_text", head_dim=256, query_pre_attn_scalar=256,
              sliding_window=512, sliding_window_pattern=6, rope_theta=1000000,
              rope_local_base_freq=10000, max_position_embeddings=32768),
        {"attention.sliding_window": 512, "rope.freq_base": 1000000.0, "rope.freq_base_swa": 10000.0},
    ),
    "Gemma 3 4B, with images": (
        {"model_type": "gemma3", "vision_config": {}, "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
            "num_hidden_layers": 34, "sliding_window": 1024,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        }},
        {"attention.head_count": 8, "attention.key_length": 256, "rope.scaling.factor": 8.0,
         "context_length": 131072},
    ),
    "Gemma 3 27B": (
        shape(62, 5376, 21504, 32, 16, model_type="gemma3_text", head_dim=128, query_pre_attn_scalar=168,
              sliding_window=1024, rope_scaling={"rope_type": "linear", "factor": 8.0}),
        {"attention.sliding_window": 1024},
    ),
    "Phi-3 mini 4k": (
        shape(32, 3072, 8192, 32, 32, model_type="phi3", sliding_window=2047, max_position_embeddings=4096,
              original_max_position_embeddings=4096, rope_scaling=None),
        {"context_length": 2047, "rope.dimension_count": 96, "attention.sliding_window": 2047},
    ),
    "Phi-3.5 mini": (
        shape(32, 3072, 8192, 32, 32, model_type="phi3", sliding_window=262144, rope_scaling=LONG,
              max_position_embeddings=131072, original_max_position_embeddings=4096),
        {"context_length": 131072, "rope.scaling.original_context_length": 4096,
         "rope.scaling.attn_factor": 1.190238},
    ),
    "Phi-4 mini": (
        shape(32, 3072, 8192, 24, 8, model_type="phi3", sliding_window=262144, rope_scaling=LONG,
              partial_rotary_factor=0.75, max_position_embeddings=131072,
              original_max_position_embeddings=4096, tie_word_embeddings=True),
        {"rope.dimension_count": 96, "attention.key_length": 128, "context_length": 131072},
    ),
    "Phi-4": (
        shape(40, 5120, 17920, 40, 10, model_type="phi3", sliding_window=None, rope_theta=250000,
              max_position_embeddings=16384, original_max_position_embeddings=16384, rope_scaling=None),
        {"context_length": 16384, "attention.sliding_window": 0},
    ),
    "SmolLM3 3B": (
        shape(36, 2048, 11008, 16, 4, model_type="smollm3", use_sliding_window=False, sliding_window=None,
              no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9, rope_theta=5000000.0,
              attention_bias=False, mlp_bias=False, max_position_embeddings=65536),
        {"context_length": 65536, "rope.freq_base": 5000000.0},
    ),
    "Granite 3.3 2B": (
        shape(40, 2048, 8192, 32, 8, model_type="granite", attention_bias=False, mlp_bias=False,
              embedding_multiplier=12.0, attention_multiplier=0.015625, residual_multiplier=0.22,
              logits_scaling=8.0, rope_theta=10000000.0, max_position_embeddings=131072),
        {"attention.scale": 0.015625, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes(tmp_path: Path, name: str) -> None:
    raw, expected = PUBLISHED[name]
    architecture, config = find_architecture(raw)
    writer = GGUFWriter(tmp_path / "keys.gguf", architecture.name)
    for write_keys in architecture.keys:
        write_keys(writer, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    fields = GGUFReader(tmp_path / "keys.gguf").fields
    found = {key: fields[f"{architecture.name}.{key}"].contents() for key in expected}
    assert found == pytest.approx(expected)
    assert f"{architecture.name}.attention.sliding_window_pattern" not in fields
