"""Rows that decoder families share: the embedding, the norms, attention, the gated MLP. Light."""

from __future__ import annotations

from typing import Any

from ..descriptor import Refusal, Spelling, Tensor, Transform, module
from ..model_config import ModelConfig
from ..transforms import first_half, second_half

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


def experts(one: str, fused: str, gate: str, up: str, down: str) -> tuple[Tensor, ...]:
    """All experts of a layer in three tensors.

    Args:
        one: module of a single expert, with ``{expert}``, as published checkpoints have it.
        fused: module of them all, with gate and up in one parameter, as transformers 5 holds them.
        gate, up, down: names of the projections of a single expert.
    """
    spellings = {
        "ffn_gate_exps": (Spelling(f"{one}.{gate}.weight"), Spelling(f"{fused}.gate_up_proj", first_half)),
        "ffn_up_exps": (Spelling(f"{one}.{up}.weight"), Spelling(f"{fused}.gate_up_proj", second_half)),
        "ffn_down_exps": (Spelling(f"{one}.{down}.weight"), Spelling(f"{fused}.down_proj")),
    }
    return tuple(
        Tensor(f"{BLOCK}.{name}.weight", tuple(Spelling(f"{LAYER}.{s.source}", s.transform) for s in both))
        for name, both in spellings.items()
    )


def no_biases(*switches: str) -> Refusal:
    """Refuses a config that turns on one of these: llama.cpp would drop the biases."""

    def refusal(config: ModelConfig) -> str | None:
        on = [switch for switch in switches if config.get(switch)]
        return f"llama.cpp reads not all the biases that {' and '.join(on)} adds to it." if on else None

    return refusal


def heads_beside_width(config: ModelConfig) -> str | None:
    """Refuses heads that together are not as wide as the model, where llama.cpp takes that for granted."""
    if config.heads * config.head_dim == config["hidden_size"]:
        return None
    return (
        f"llama.cpp wants this family's heads to fill the model's width of {config['hidden_size']}, "
        f"these {config.heads} of {config.head_dim} do not."
    )
