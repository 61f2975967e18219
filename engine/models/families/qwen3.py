"""Qwen3 (dense): q and k are normalised a head; heads of 128 whatever the width."""

from .descriptor import Family, FastLayout

FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    fast=FastLayout(window="by_layer_type", qk_norm=("q_norm", "k_norm")),
    chat_template="qwen-3",
    attention_bias="config",
    qk_norm=True,
    defaults={"head_dim": 128, "use_sliding_window": False, "max_window_layers": 28},
)
