"""Qwen3 mixtures of experts (30B-A3B, 235B-A22B): Qwen3's attention, a router and many small experts.

transformers 5 has no ``head_dim`` in this class; published files state 128.
"""

from .descriptor import MIXTURE, Experts, Family, FastLayout

FAMILY = Family(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    fast=FastLayout(window="all", qk_norm=("q_norm", "k_norm"), experts=True),
    chat_template="qwen-3",
    attention_bias="config",
    qk_norm=True,
    experts=Experts(),
    defaults={
        "use_sliding_window": False,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    capabilities=MIXTURE,
)
