"""Attention whose scores are capped (Gemma 2): transformers before 5.21 forgets the cap by default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CAP = "attn_logit_softcapping"
"""The setting's name, in a configuration or in its parts (arXiv:2408.00118, section 2)."""
PARTS = ("text_config", "encoder", "decoder")
"""Configurations inside of one: a model's that sees, and those of T5Gemma."""
DEFAULTS = {"gemma2": 50.0, "t5gemma": 50.0, "t5_gemma_module": 50.0, "vaultgemma": 50.0}
"""What transformers takes where a configuration of this type is silent; of all others it is no cap."""


def attention_of(folder: Path) -> dict[str, str]:
    """What transformers' ``from_pretrained`` must be told of a model's attention; nothing of most.

    Its default there, torch's fused attention, has no cap and ignored it up to version 5.20: losses and
    answers were slightly another model's.
    """
    file = folder / "config.json"
    if not file.is_file():  # an adapter, or a sentence model whose encoder lies deeper: none is capped
        return {}
    return {"attn_implementation": "eager"} if _caps(json.loads(file.read_text(encoding="utf-8"))) else {}


def _caps(config: dict[str, Any]) -> bool:
    parts = [config[name] for name in PARTS if isinstance(config.get(name), dict)]
    # What has parts of its own leaves the setting to them.
    default = None if parts else DEFAULTS.get(str(config.get("model_type")))
    return bool(config.get(CAP, default)) or any(_caps(part) for part in parts)
