"""A tiny model that brings Python code of its own; running it leaves a mark."""

from __future__ import annotations

import json
from pathlib import Path

from support.tiny_models import build_tiny_model

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "whet_own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def build_coded_model(path: Path, mark: Path, module: str = "modeling_own") -> Path:
    """A Llama under a name that transformers does not know; its code makes ``mark``."""
    build_tiny_model(path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config |= {
        "model_type": "whet_own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{module}.OwnConfig",
            "AutoModelForCausalLM": f"{module}.OwnForCausalLM",
        },
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / f"{module.rpartition('--')[2]}.py").write_text(CODE.format(mark=str(mark)))
    return path
