"""Rows that decoder families share: the embedding, the norms, attention, the gated MLP. Light."""

from __future__ import annotations

from typing import Any

from ..descriptor import Spelling, Tensor, Transform, module

LAYER = "model.layers.{layer}"
BLOCK = "blk.{layer}"

ENDS = module("model.embed_tokens", "token_embd") + module("model.norm", "output_norm")


def layer(source: str, target: str, **more: Any) -> tuple[Tensor, ...]:
    """A module of every layer."""
    return module(f"{LAYER}.{source}", f"{BLOCK}.{target}", **more)


NORMS = layer("input_layernorm", "attn_norm") + layer("post_attention_layernorm", "ffn_norm")
QK_NORMS = layer("self_attn.q_norm", "attn_q_norm") + layer("self_attn.k_norm", "attn_k_norm")


def attention(
    q: Transform | None = None, k: Transform | None = None, *, bias: bool = False, out_bias: bool = False
) -> tuple[Tensor, ...]:
    """Separate projections. ``q`` and ``k`` reorder rows where llama.cpp rotates neighbours."""
    return (
        layer("self_attn.q_proj", "attn_q", bias=bias, transform=q)
        + layer("self_attn.k_proj", "attn_k", bias=bias, transform=k)
        + layer("self_attn.v_proj", "attn_v", bias=bias)
        + layer("self_attn.o_proj", "attn_output", bias=out_bias)
    )


def gated_mlp(*, bias: bool = False) -> tuple[Tensor, ...]:
    return (
        layer("mlp.gate_proj", "ffn_gate", bias=bias)
        + layer("mlp.up_proj", "ffn_up", bias=bias)
        + layer("mlp.down_proj", "ffn_down", bias=bias)
    )


def stacked(target: str, *spellings: Spelling) -> tuple[Tensor, ...]:
    """All experts of a layer in one tensor; spellings below the layer."""
    below = tuple(Spelling(f"{LAYER}.{one.source}", one.transform) for one in spellings)
    return (Tensor(f"{BLOCK}.{target}.weight", below),)
