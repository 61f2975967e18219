"""Qwen3 (dense): q and k are normalised a head; heads of 128 whatever the width."""

from .descriptor import Family

FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    chat_template="qwen-3",
    attention_bias="config",
    qk_norm=True,
    default_head_dim=128,
)
