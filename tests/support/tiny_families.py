"""One tiny configuration for every model family whet describes, and a random model of each.

    from support.tiny_families import DECODERS, build
    for name in DECODERS:
        model = build(name, torch.float32)

Sizes differ from one another on purpose (heads x head_dim is not hidden_size, K/V heads are fewer) and each
switch that changes what a family computes is on in one of the entries: biases, windows, softcaps,
multipliers, partial rotary. Deterministic: the same arguments give the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from whet.engine.models.capped_attention import CAP

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

HEAD_DIM, WINDOW = 16, 8

COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.12,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "attention_dropout": 0.0,
}

HEADED = COMMON | {"head_dim": HEAD_DIM}
"""With a head size of its own: four heads of 16 in a width of 48."""

SQUARE = COMMON | {"hidden_size": 64}
"""For classes without ``head_dim``: it is hidden_size / heads, 16."""

SWITCHED_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                 "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip

MOE = {"num_experts_per_tok": 2, "norm_topk_prob": True, "moe_intermediate_size": 24}

LATENT = {
    "hidden_size": 64,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "n_group": 2,
    "topk_group": 1,
    **MOE,
}
"""DeepSeek's own attention (keys and values from a low-rank latent) and its experts."""

ENCODER: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "initializer_range": 0.12,
    "pad_token_id": 0,
}
UNDROPPED = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _config(model_type: str, *settings: dict[str, Any], **more: Any) -> Callable[[], PretrainedConfig]:
    def make() -> PretrainedConfig:
        from transformers import CONFIG_MAPPING

        values: dict[str, Any] = {}
        for part in settings:
            values |= part
        return CONFIG_MAPPING[model_type](**values, **more)

    return make


DECODER_CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": _config("llama", HEADED, rope_parameters=SWITCHED_ROPE, tie_word_embeddings=False),
    "llama-biased": _config("llama", HEADED, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": _config("mistral", HEADED, sliding_window=WINDOW),
    "qwen2": _config("qwen2", SQUARE, tie_word_embeddings=True),
    "qwen2-window": _config(
        "qwen2", SQUARE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1,
    ),
    "qwen3": _config("qwen3", HEADED, tie_word_embeddings=True),
    "qwen3-biased": _config("qwen3", HEADED, attention_bias=True, tie_word_embeddings=False),
    "qwen3_moe": _config(
        "qwen3_moe", HEADED, MOE, num_experts=4, mlp_only_layers=[1], use_sliding_window=True,
        sliding_window=WINDOW,
    ),
    "mixtral": _config(
        "mixtral", HEADED, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW,
    ),
    "gemma": _config("gemma", HEADED, hidden_act="gelu_pytorch_tanh"),
    "gemma2": _config(
        "gemma2", SQUARE, head_dim=24, sliding_window=WINDOW, query_pre_attn_scalar=20,
        attn_logit_softcapping=5.0, final_logit_softcapping=3.0,
    ),
    "gemma3": _config(
        "gemma3_text", SQUARE, head_dim=24, sliding_window=WINDOW, query_pre_attn_scalar=20,
        attn_logit_softcapping=5.0, final_logit_softcapping=3.0,  # the class applies the second only
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        },
    ),
    "phi3": _config("phi3", SQUARE, sliding_window=WINDOW, tie_word_embeddings=False),
    "phi3-partial": _config(
        "phi3", SQUARE, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
    ),
    "granite": _config(
        "granite", SQUARE, attention_bias=True, tie_word_embeddings=True, embedding_multiplier=12.0,
        residual_multiplier=0.22, attention_multiplier=0.015625, logits_scaling=8.0,
    ),
    "smollm3": _config("smollm3", SQUARE, no_rope_layers=[1, 0, 1], tie_word_embeddings=True),
    "smollm3-window": _config(
        "smollm3", SQUARE, no_rope_layers=[1, 0, 1], use_sliding_window=True, sliding_window=WINDOW,
    ),
    "deepseek_v2": _config("deepseek_v2", COMMON, LATENT, topk_method="group_limited_greedy"),
    "deepseek_v3": _config("deepseek_v3", COMMON, LATENT),
}  # fmt: skip

ENCODER_CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": _config("bert", ENCODER, UNDROPPED),
    "xlm-roberta": _config("xlm-roberta", ENCODER, UNDROPPED, type_vocab_size=1),
    "mpnet": _config("mpnet", ENCODER, UNDROPPED),
    "modernbert": _config(
        "modernbert", ENCODER, local_attention=2 * WINDOW, bos_token_id=1, eos_token_id=2, cls_token_id=1,
        sep_token_id=2,
    ),
}  # fmt: skip

FAMILY_CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {**DECODER_CONFIGS, **ENCODER_CONFIGS}
DECODERS, ENCODERS = tuple(DECODER_CONFIGS), tuple(ENCODER_CONFIGS)


def build(name: str, dtype: torch.dtype | None = None, seed: int = 0) -> PreTrainedModel:
    """A random model on the CPU in eval mode: causal decoders with their head, encoders without one.

    Biases and norm weights are moved off their zeros and ones, so that a forgotten one is seen.

    Args:
        name: key of :data:`FAMILY_CONFIGS`.
        dtype: of the weights; fp32 by default. Drawn in fp32 and rounded, so all types hold one model.
        seed: of the weights.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    auto = AutoModelForCausalLM if name in DECODER_CONFIGS else AutoModel
    capped = FAMILY_CONFIGS[name]().to_dict().get(CAP)
    options = {"attn_implementation": "eager"} if capped else {}  # see whet.engine.models.capped_attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(FAMILY_CONFIGS[name](), dtype=torch.float32, **options)
        with torch.no_grad():
            for param in model.parameters():
                if param.ndim == 1:
                    param.add_(0.2 * torch.randn_like(param))
    if dtype not in (None, torch.float32):
        drawn = model.state_dict()
        # not model.to(dtype), which would round the rotary frequencies too; loading a checkpoint does not
        model = auto.from_config(FAMILY_CONFIGS[name](), dtype=dtype, **options)
        model.load_state_dict(drawn)
    return model.eval()
