"""Qwen2, Qwen2.5 and DeepSeek-R1-Distill-Qwen: q, k and v always carry a bias, o never does."""

from .descriptor import Family, FastLayout

FAMILY = Family(
    name="qwen2",
    model_types=("qwen2",),
    fast=FastLayout(window="by_layer_type"),
    chat_template="qwen-2.5",
    attention_bias="qkv",
    defaults={"use_sliding_window": False, "max_window_layers": 28},
)
