"""Functions that write the hyperparameters of a family, ``{arch}.*``, from its config. Light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .model_config import ModelConfig
from .rope import longrope_attention_factor, yarn_attention_factor

if TYPE_CHECKING:
    from gguf import GGUFWriter


def sizes(writer: GGUFWriter, config: ModelConfig) -> None:
    """What every decoder has: layers, widths, heads, epsilon."""
    writer.add_block_count(config.layers)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def whole_context(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_context_length(config.positions)


def window_ends_context(writer: GGUFWriter, config: ModelConfig) -> None:
    """Positions for which llama.cpp computes what the model does.

    For most architectures it has no sliding window, so one in force ends the context there.
    """
    writer.add_context_length(min(config.positions, config.window or config.positions))


def stated_window_ends_context(writer: GGUFWriter, config: ModelConfig) -> None:
    """The same of families whose window holds for every layer."""
    writer.add_context_length(min(config.positions, config.stated_window or config.positions))


def write_rope(writer: GGUFWriter, config: ModelConfig) -> None:
    """Base and scaling. Factors of single frequencies are tensors, see rope.py."""
    from gguf import RopeScalingType

    rope = config.rope
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(rope.theta)
    if rope.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope.scaling["factor"]))
    elif rope.kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope.scaling["factor"]))
        writer.add_rope_scaling_orig_ctx_len(rope.original)
        if (factor := yarn_attention_factor(rope.scaling)) != 1.0:
            writer.add_rope_scaling_attn_factors(factor)
    elif rope.kind == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(rope.original)
        writer.add_rope_scaling_attn_factors(longrope_attention_factor(rope))


def expert_counts(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_expert_count(config.experts)
    writer.add_expert_used_count(config["num_experts_per_tok"])
