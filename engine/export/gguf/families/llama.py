"""What llama.cpp calls ``llama`` (Llama, Mistral, Mixtral) and what differs from it in keys only (Granite,
SmolLM3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..descriptor import Architecture, Spelling, Tensor
from ..keys import expert_counts, sizes, stated_window_ends_context, whole_context, write_rope
from ..model_config import ModelConfig
from ..transforms import interleave_k, interleave_q
from .tables import BLOCK, ENDS, LAYER, NORMS, attention, experts, gated_mlp, no_biases

if TYPE_CHECKING:
    from gguf import GGUFWriter

ROPES = ("default", "linear", "llama3", "yarn", "longrope")
BIASED = attention(interleave_q, interleave_k, bias=True, out_bias=True) + gated_mlp(bias=True)
PLAIN_ATTENTION = attention(interleave_q, interleave_k)

LLAMA = Architecture(
    model_types=("llama",),
    name="llama",
    tensors=ENDS + NORMS + BIASED,
    defaults={"rms_norm_eps": 1e-6},
    ropes=ROPES,
    keys=(sizes, whole_context, write_rope),
)

# Mistral computes what Llama does; only its window differs.
MISTRAL = Architecture(
    model_types=("mistral",),
    name="llama",
    tensors=ENDS + NORMS + PLAIN_ATTENTION + gated_mlp(),
    defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096},
    ropes=ROPES,
    keys=(sizes, stated_window_ends_context, write_rope),
)

_ROUTER = tuple(Spelling(f"{LAYER}.{name}.gate.weight") for name in ("block_sparse_moe", "mlp"))

MIXTRAL = Architecture(
    model_types=("mixtral",),
    name="llama",
    tensors=ENDS
    + NORMS
    + PLAIN_ATTENTION
    + (Tensor(f"{BLOCK}.ffn_gate_inp.weight", _ROUTER, exact=True),)
    + experts("block_sparse_moe.experts.{expert}", "mlp.experts", "w1", "w3", "w2"),
    defaults={
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rope_theta": 1e6,
    },
    ropes=ROPES,
    keys=(sizes, stated_window_ends_context, write_rope, expert_counts),
)


def granite_scales(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_attention_scale(float(config["attention_multiplier"]))
    writer.add_embedding_scale(float(config["embedding_multiplier"]))
    writer.add_residual_scale(float(config["residual_multiplier"]))
    writer.add_logit_scale(float(config["logits_scaling"]))


GRANITE = Architecture(
    model_types=("granite",),
    name="granite",
    tensors=ENDS + NORMS + BIASED,
    defaults={
        "rms_norm_eps": 1e-6,
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
    ropes=ROPES,
    keys=(sizes, whole_context, write_rope, granite_scales),
)

ROTATED_LAYERS = 3
"""llama.cpp rotates this many layers of SmolLM3, then leaves one out, and no key of the file changes it."""


def rotated_otherwise(config: ModelConfig) -> str | None:
    step = ROTATED_LAYERS + 1
    fixed = [int((layer + 1) % step != 0) for layer in range(config.layers)]
    interval = int(config["no_rope_layer_interval"])
    spaced = [int((layer + 1) % interval != 0) for layer in range(config.layers)]
    if list(config.get("no_rope_layers") or spaced) == fixed:
        return None
    return f"llama.cpp leaves every {step}th layer of smollm3 unrotated, this model others (no_rope_layers)."


SMOLLM3 = Architecture(
    model_types=("smollm3",),
    name="smollm3",
    tensors=ENDS + NORMS + PLAIN_ATTENTION + gated_mlp(),
    defaults={
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 4,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "no_rope_layer_interval": 4,
    },
    refusals=(no_biases("attention_bias", "mlp_bias"), rotated_otherwise),
)
