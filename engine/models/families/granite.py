"""Granite 3 (dense): Llama's layer with multipliers on embedding, scores, both half layers, and logits."""

from .descriptor import Family, FastLayout

FAMILY = Family(
    name="granite",
    model_types=("granite",),
    fast=FastLayout(
        embedding_multiplier="embedding_multiplier",
        residual_multiplier="residual_multiplier",
        logits_divisor="logits_scaling",
        query_scale="attention_multiplier",
        query_scale_power=1.0,
    ),
    attention_bias="config",
    mlp_bias=True,
    defaults={"attention_multiplier": 1.0},
)
