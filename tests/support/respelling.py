"""Checkpoints as others spell them: tensors renamed or fused, other values in config.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def rewrite(model: Path, rename: Callable[[dict[str, Any]], dict[str, Any]], **config: Any) -> Path:
    """Write the model's tensors anew through ``rename``, and lay values over its config.json."""
    from safetensors.torch import load_file, save_file

    weights = rename(load_file(model / "model.safetensors"))
    save_file({name: value.contiguous() for name, value in weights.items()}, model / "model.safetensors")
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return model


def fuse_experts(weights: dict[str, Any]) -> dict[str, Any]:
    """As transformers 5 holds them in memory, out of one tensor an expert."""
    import torch

    fused = {
        name.replace(".block_sparse_moe.gate.", ".mlp.gate."): value
        for name, value in weights.items()
        if ".experts." not in name
    }
    for layer in range(2):
        parts: dict[str, list[Any]] = {}
        for name in sorted(weights):
            if name.startswith(f"model.layers.{layer}.") and ".experts." in name:
                parts.setdefault(name.split(".")[-2], []).append(weights[name])
        gate, up, down = (
            torch.stack(parts[one] if one in parts else parts[other])
            for one, other in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))
        )
        fused[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
        fused[f"model.layers.{layer}.mlp.experts.down_proj"] = down
    return fused
