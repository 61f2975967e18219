"""Gemma 1, 2 and 3 (text): norms about one, a head that is the embedding, windows that llama.cpp computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..descriptor import Architecture, module
from ..keys import sizes, whole_context, write_rope
from ..model_config import ModelConfig
from ..transforms import plus_one
from .tables import attention, gated_mlp, layer, no_biases

if TYPE_CHECKING:
    from gguf import GGUFWriter

TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
CLASS: dict[str, Any] = {"rms_norm_eps": 1e-6, "head_dim": 256, "tie_word_embeddings": True}

ENDS = module("model.embed_tokens", "token_embd") + module("model.norm", "output_norm", transform=plus_one)
ATTENTION_AND_MLP = layer("input_layernorm", "attn_norm", transform=plus_one) + attention() + gated_mlp()
FOUR_NORMS = (
    layer("post_attention_layernorm", "post_attention_norm", transform=plus_one)
    + layer("pre_feedforward_layernorm", "ffn_norm", transform=plus_one)
    + layer("post_feedforward_layernorm", "post_ffw_norm", transform=plus_one)
)
QK_NORMS = layer("self_attn.q_norm", "attn_q_norm", transform=plus_one) + layer(
    "self_attn.k_norm", "attn_k_norm", transform=plus_one
)


def sees_both_ways(config: ModelConfig) -> str | None:
    if not config.get("use_bidirectional_attention"):
        return None
    return "llama.cpp computes this architecture with causal attention only (use_bidirectional_attention)."


NO_BIASES = no_biases("attention_bias")

GEMMA = Architecture(
    model_types=("gemma",),
    name="gemma",
    tensors=ENDS + ATTENTION_AND_MLP + layer("post_attention_layernorm", "ffn_norm", transform=plus_one),
    head="shared",
    defaults=CLASS | {"num_key_value_heads": 16},
    # Released configs say "gelu" and mean the approximation; transformers reads them so.
    activations=(*TANH_GELU, "gelu"),
    refusals=(NO_BIASES, sees_both_ways),
    keys=(sizes, whole_context, write_rope),
)


def scaled_otherwise(large_layers: int) -> Any:
    """llama.cpp knows two attention scales: 1/sqrt(head_dim), and another for the largest model's depth."""

    def refusal(config: ModelConfig) -> str | None:
        width = config["hidden_size"] // config.heads if config.layers == large_layers else config.head_dim
        if config["query_pre_attn_scalar"] == width:
            return None
        return (
            f"llama.cpp scales attention by 1/sqrt({width}) for this model, its config.json says "
            f"query_pre_attn_scalar={config['query_pre_attn_scalar']}."
        )

    return refusal


def layer_pattern(config: ModelConfig, period: int) -> list[bool]:
    """Which layers have a window: all but each ``period``-th, unless the config lists them."""
    kinds = config.get("layer_types")
    if kinds is None:
        return [bool((layer + 1) % period) for layer in range(config.layers)]
    return [kind == "sliding_attention" for kind in kinds]


def write_window(writer: GGUFWriter, config: ModelConfig, assumed: int, period: int) -> None:
    """The window; which layers have one only where they are not those that llama.cpp assumes.

    Args:
        assumed: all but each so many-th, in llama.cpp.
        period: the same in the model, where the config does not list its layers.
    """
    writer.add_sliding_window(config["sliding_window"])
    pattern = layer_pattern(config, period)
    if pattern != [bool((layer + 1) % assumed) for layer in range(config.layers)]:
        writer.add_sliding_window_pattern(pattern)


def gemma2_attention(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    write_window(writer, config, assumed=2, period=2)


def no_softcaps(config: ModelConfig) -> str | None:
    absent = [key for key in ("attn_logit_softcapping", "final_logit_softcapping") if not config.get(key)]
    return (
        f"llama.cpp always caps gemma2's logits, this model has no {' and no '.join(absent)}."
        if absent
        else None
    )


GEMMA2 = Architecture(
    model_types=("gemma2",),
    name="gemma2",
    tensors=ENDS + ATTENTION_AND_MLP + FOUR_NORMS,
    head="shared",
    defaults=CLASS
    | {
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    activations=TANH_GELU,
    refusals=(NO_BIASES, sees_both_ways, scaled_otherwise(large_layers=46), no_softcaps),
    keys=(sizes, whole_context, write_rope, gemma2_attention),
)


def windowed_rope(config: ModelConfig) -> dict[str, Any]:
    """Rope of the layers with a window: beside the others', or (before transformers 5) a key of its own."""
    parameters = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    return {"rope_theta": config["rope_local_base_freq"], "rope_type": "default", **parameters}


def gemma3_attention(writer: GGUFWriter, config: ModelConfig) -> None:
    write_window(writer, config, assumed=6, period=int(config.get("sliding_window_pattern") or 6))
    writer.add_rope_freq_base_swa(float(windowed_rope(config)["rope_theta"]))
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def windowed_rope_scaled(config: ModelConfig) -> str | None:
    kind = windowed_rope(config)["rope_type"]
    return None if kind == "default" else f"llama.cpp cannot scale the windowed layers' rope ({kind})."


GEMMA3_DEFAULTS = CLASS | {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}

GEMMA3 = Architecture(
    # "gemma3" is the multimodal model: its text part is converted, what sees images is left out.
    model_types=("gemma3_text", "gemma3"),
    name="gemma3",
    tensors=ENDS + ATTENTION_AND_MLP + FOUR_NORMS + QK_NORMS,
    defaults=GEMMA3_DEFAULTS,
    activations=TANH_GELU,
    ropes=("default", "linear"),
    refusals=(NO_BIASES, sees_both_ways, scaled_otherwise(large_layers=62), windowed_rope_scaled),
    keys=(sizes, whole_context, write_rope, gemma3_attention),
    aliases=(
        ("language_model.model.", "model."),
        ("model.language_model.", "model."),
        ("language_model.", ""),
    ),
    ignored=("*.inv_freq", "*vision_tower.*", "*multi_modal_projector.*"),
)
