"""Qwen2 and Qwen2.5: q, k and v always carry a bias, o never does."""

from .descriptor import Family

FAMILY = Family(
    name="qwen2",
    model_types=("qwen2",),
    chat_template="qwen-2.5",
    attention_bias="qkv",
)
