"""Merged weights are held against PEFT's own merge: another number is found, and one that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.tiny_whisper import build_tiny_whisper
from transformers import WhisperForConditionalGeneration

from whet.engine.export.weights_proof import prove_weights

NAME = "WhisperForConditionalGeneration"
CHANGED = "model.decoder.layers.0.fc1.weight"


def adapted(base: Path, folder: Path, size: float) -> Path:
    """An adapter whose update is of this size."""
    torch.manual_seed(0)
    model: Any = WhisperForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "fc1"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=size)
    model.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize(
    ("size", "factor", "status"),
    [(0.1, 1.0, "pass"), (0.1, 1.1, "fail"), (0.1, float("nan"), "fail"), (0.0, 1.0, "warn")],
)
def test_what_a_merge_must_be(tmp_path: Path, size: float, factor: float, status: str) -> None:
    base = build_tiny_whisper(tmp_path / "base")
    adapter, merged = adapted(base, tmp_path / "adapter", size), tmp_path / "merged"
    whole: Any = WhisperForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(whole, str(adapter)).merge_and_unload().save_pretrained(str(merged))
    file = merged / "model.safetensors"
    weights = load_file(file)
    weights[CHANGED][0, 0] *= factor
    save_file(weights, file, {"format": "pt"})
    (proof,) = prove_weights(base, adapter, merged, NAME).proofs
    assert proof.status == status
    assert proof.evidence["wrong"] == ([CHANGED] if status == "fail" else [])
