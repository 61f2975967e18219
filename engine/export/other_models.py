"""Models that hear or speak: neither next tokens of text, nor classes, nor vectors. What they cannot become.
Light."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import WhetError

REASONS = {
    "WhisperForConditionalGeneration": "llama.cpp has no Whisper: whisper.cpp reads another format, which "
    "its own convert-h5-to-ggml.py makes of merged weights",
    "CsmForConditionalGeneration": "llama.cpp has no model that writes several codebooks a frame",
}
"""transformers' class -> why it leaves as 16-bit weights only."""


def other_class(folder: Path) -> str | None:
    """The class of an adapter's or a whole model's folder, None for any other than those above."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    names = json.loads(file.read_text(encoding="utf-8")).get("architectures") or [""]
    return names[0] if names[0] in REASONS else None


def sees(folder: Path) -> bool:
    """Whether an adapter's or a model's folder holds what prepares images: its model is trained on them."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = folder / name
        held = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if {"image_processor", "image_processor_type", "image_mean"} & held.keys():
            return True
    return False


def no_gguf_of_seeing() -> WhetError:
    """Why a vision-language model leaves as 16-bit weights only."""
    return WhetError(
        "gguf.unsupported",
        "llama.cpp reads a model that sees from two files, and whet neither writes nor proves the one of the "
        "image encoder (mmproj); other formats are not made of such models either.",
        "Export the merged weights (export.merged), which transformers and vLLM load; llama.cpp's own "
        "converter takes that folder.",
    )


def no_gguf_of(name: str) -> WhetError:
    """Why a model of this class has none."""
    return WhetError(
        "gguf.unsupported",
        f"{name} has no GGUF: {REASONS[name]}.",
        "Export the merged weights instead (export.merged), for transformers.",
    )
