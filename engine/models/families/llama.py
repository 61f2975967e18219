"""Llama 2, 3, 3.1, 3.2 (text) and the many that use its class: SmolLM 1 and 2, DeepSeek-R1-Distill-Llama."""

from .descriptor import Family, FastLayout

FAMILY = Family(
    name="llama",
    model_types=("llama",),
    fast=FastLayout(),
    chat_template="llama-3.1",
    attention_bias="config",
    mlp_bias=True,
)
