"""DeepSeek V2 and V3 (R1): keys and values from a low-rank latent, and mixtures of experts with shared ones.

Its distilled models are Llama's and Qwen2's classes and belong to those families.
"""

from .descriptor import LATENT_NAMES, LINEAR_NAMES, MIXTURE, Experts, Family, Unsupported

_PLAIN = Unsupported(
    "latent attention, whose keys and values differ in width: it trains on plain transformers"
)
_TARGETS = (
    *LATENT_NAMES,
    *(name for name in LINEAR_NAMES if name not in ("q_proj", "k_proj", "v_proj", "o_proj")),
)

V2 = Family(
    name="deepseek_v2",
    model_types=("deepseek_v2",),
    fast=_PLAIN,
    target_modules=_TARGETS,
    attention="latent",
    attention_bias="config",
    mlp_bias=True,
    experts=Experts(shared="n_shared_experts"),
    defaults={
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
        "first_k_dense_replace": 0,
    },
    capabilities=MIXTURE,
)

V3 = Family(
    name="deepseek_v3",
    model_types=("deepseek_v3",),
    fast=_PLAIN,
    target_modules=_TARGETS,
    attention="latent",
    attention_bias="config",
    experts=Experts(shared="n_shared_experts"),
    defaults={
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
    },
    capabilities=MIXTURE,
)
