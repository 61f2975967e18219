"""Phi-3, Phi-3.5 and Phi-4, which all say ``phi3``: fused projections, two sets of rope factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..descriptor import Architecture
from ..keys import sizes, stated_window_ends_context, write_rope
from ..model_config import ModelConfig
from .tables import ENDS, NORMS, heads_beside_width, layer

if TYPE_CHECKING:
    from gguf import GGUFWriter


def window_and_original_context(writer: GGUFWriter, config: ModelConfig) -> None:
    """A window of 0 is how llama.cpp knows Phi-4; it computes no window for the others either."""
    writer.add_sliding_window(config.stated_window or 0)
    if config.rope.kind != "longrope":
        writer.add_rope_scaling_orig_ctx_len(config.rope.original)


PHI3 = Architecture(
    model_types=("phi3",),
    name="phi3",
    tensors=ENDS
    + NORMS
    + layer("self_attn.qkv_proj", "attn_qkv")
    + layer("self_attn.o_proj", "attn_output")
    + layer("mlp.gate_up_proj", "ffn_up")
    + layer("mlp.down_proj", "ffn_down"),
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    },
    ropes=("default", "longrope", "partial"),
    refusals=(heads_beside_width,),
    keys=(sizes, stated_window_ends_context, write_rope, window_and_original_context),
)
