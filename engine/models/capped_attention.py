"""Attention whose scores are capped (Gemma 2): transformers before 5.21 forgets the cap by default."""

from __future__ import annotations

import json
from pathlib import Path

CAP = "attn_logit_softcapping"
"""The setting's name, in a configuration or in its part for text (arXiv:2408.00118, section 2)."""


def attention_of(folder: Path) -> dict[str, str]:
    """What transformers' ``from_pretrained`` must be told of a model's attention; nothing of most.

    Its default there, torch's fused attention, has no cap and ignored it up to version 5.20: losses and
    answers were slightly another model's.
    """
    file = folder / "config.json"
    if not file.is_file():  # an adapter, or a sentence model whose encoder lies deeper: none is capped
        return {}
    config = json.loads(file.read_text(encoding="utf-8"))
    inner = config.get("text_config")
    parts = (config, inner if isinstance(inner, dict) else {})
    return {"attn_implementation": "eager"} if any(part.get(CAP) for part in parts) else {}
