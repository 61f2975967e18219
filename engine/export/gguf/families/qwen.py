"""Qwen2 (2.5), Qwen3 and Qwen3's mixture of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..descriptor import Architecture
from ..keys import expert_counts, sizes, stated_window_ends_context, write_rope
from ..model_config import ModelConfig
from .tables import ENDS, NORMS, QK_NORMS, attention, experts, gated_mlp, heads_beside_width, layer, no_biases

if TYPE_CHECKING:
    from gguf import GGUFWriter

DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

QWEN2 = Architecture(
    model_types=("qwen2",),
    name="qwen2",
    tensors=ENDS + NORMS + attention(bias=True) + gated_mlp(),
    defaults=DEFAULTS,
    refusals=(heads_beside_width,),
)

QWEN3 = Architecture(
    model_types=("qwen3",),
    name="qwen3",
    tensors=ENDS + NORMS + QK_NORMS + attention() + gated_mlp(),
    defaults=DEFAULTS | {"head_dim": 128},
    refusals=(no_biases("attention_bias"),),
)


def expert_width(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def dense_layers(config: ModelConfig) -> str | None:
    if not config.get("mlp_only_layers") and config["decoder_sparse_step"] == 1:
        return None
    return (
        "llama.cpp expects experts in every layer of qwen3_moe, this model has layers without "
        f"(mlp_only_layers={config.get('mlp_only_layers')}, "
        f"decoder_sparse_step={config['decoder_sparse_step']})."
    )


def weights_not_normed(config: ModelConfig) -> str | None:
    if config["norm_topk_prob"]:
        return None
    return "llama.cpp lets the chosen experts' weights sum to one, this model does not (norm_topk_prob)."


QWEN3_MOE = Architecture(
    model_types=("qwen3_moe",),
    name="qwen3moe",
    tensors=ENDS
    + NORMS
    + QK_NORMS
    + attention()
    + layer("mlp.gate", "ffn_gate_inp", exact=True)
    + experts("mlp.experts.{expert}", "mlp.experts", "gate_proj", "up_proj", "down_proj"),
    defaults={
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 4,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
    },
    keys=(sizes, stated_window_ends_context, write_rope, expert_counts, expert_width),
    refusals=(no_biases("attention_bias"), dense_layers, weights_not_normed),
)
