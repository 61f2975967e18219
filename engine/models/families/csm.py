"""CSM: a Llama that writes the first code of a frame of sound, and a small one that writes the others."""

from .descriptor import Capability, Family, Supported, Unsupported

_SPEAKS = Unsupported("it writes codes of sound: method.kind=tts with method.layout=csm trains it")
_OTHERS = (
    "sft", "preference", "grpo", "reward", "embedding", "classification", "token_classification", "reranker",
    "vision", "speech",
)  # fmt: skip

_CAPABILITIES: dict[str, Capability] = {
    **{name: Supported() for name in ("tts", "lora", "dora", "full", "nf4", "int8")},
    **dict.fromkeys((*_OTHERS, "packing"), _SPEAKS),
    "fp8": Unsupported("FP8 layers are made for causal language models alone"),
}

FAMILY = Family(
    name="csm",
    model_types=("csm",),
    fast=Unsupported(
        "the fast path ends in one head over one vocabulary; two decoders train on transformers"
    ),
    exact=False,
    capabilities=_CAPABILITIES,
)
