"""Mixtral: Mistral's attention, eight experts in every layer. Published files call an expert's matrices w1
(gate), w3 (up) and w2 (down)."""

from .descriptor import MIXTURE, Experts, Family, FastLayout

FAMILY = Family(
    name="mixtral",
    model_types=("mixtral",),
    fast=FastLayout(window="all", experts=True),
    target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2", "w3"),
    chat_template="mistral",
    experts=Experts(width="intermediate_size", names=("w1", "w3", "w2")),
    defaults={"num_local_experts": 8, "num_experts_per_tok": 2},
    capabilities=MIXTURE,
)
