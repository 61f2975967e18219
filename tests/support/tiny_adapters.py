"""PEFT adapters on tiny models, every trained tensor far from where it began.

from support.tiny_adapters import adapter_logits, train_at_random
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train_at_random(base: Path, out: Path, **config: Any) -> Path:
    """An adapter of rank 4 on all linear layers unless ``config`` (of PEFT's LoraConfig) says otherwise."""
    torch.manual_seed(7)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 16, "target_modules": LINEAR, **config}
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            else:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(str(out))
    return out


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[rows, tokens, vocabulary]."""
    with torch.no_grad():
        values: torch.Tensor = model.eval()(input_ids=ids).logits.float()
    return values


def adapter_logits(base: Path, adapter: Path, ids: torch.Tensor) -> torch.Tensor:
    """Of PEFT on the float32 base."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return logits(PeftModel.from_pretrained(model, adapter), ids)


def folder_logits(folder: Path, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """Of plain transformers, in float32 unless ``options`` say otherwise."""
    return logits(AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options}), ids)
