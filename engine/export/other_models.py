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


def no_gguf_of(name: str) -> WhetError:
    """Why a model of this class has none."""
    return WhetError(
        "gguf.unsupported",
        f"{name} has no GGUF: {REASONS[name]}.",
        "Export the merged weights instead (export.merged), for transformers.",
    )
