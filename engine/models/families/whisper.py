"""Whisper: an encoder of sound and a decoder that writes what was said (arXiv:2212.04356)."""

from .descriptor import Capability, Family, Supported, Unsupported

_HEARS = Unsupported("it writes what is said in recordings: method.kind=speech trains it")
_OTHERS = (
    "sft", "preference", "grpo", "reward", "embedding", "classification", "token_classification", "reranker",
    "vision", "tts",
)  # fmt: skip

_CAPABILITIES: dict[str, Capability] = {
    **{name: Supported() for name in ("speech", "lora", "dora", "full", "nf4", "int8")},
    **dict.fromkeys((*_OTHERS, "packing"), _HEARS),
    "fp8": Unsupported("FP8 layers are made for causal language models alone"),
}

FAMILY = Family(
    name="whisper",
    model_types=("whisper",),
    fast=Unsupported(
        "its layers are transformers' own; on a GPU whole steps are replayed as CUDA graphs where they can be"
    ),
    target_modules=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    defaults={
        "tie_word_embeddings": True,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
        "max_target_positions": 448,
    },
    capabilities=_CAPABILITIES,
)
