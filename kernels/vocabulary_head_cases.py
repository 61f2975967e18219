"""Inputs with which the losses over a vocabulary are checked and timed."""

from __future__ import annotations

from typing import Any

import torch

from .spec import Case, Inputs

OPTIONS = ("softcap", "logit_scale", "label_smoothing", "z_loss", "temperature", "entropy", "chunk")
ROWS_SIGNATURE = {
    "products": "*T",
    **dict.fromkeys(("row_stride", "vocabulary", "width", "ignore_index"), "i32"),
    "labels": "*i64",
    **dict.fromkeys(("inner", "outer", "gradient_scale"), "fp32"),
    **dict.fromkeys(("CAPPED", "BLOCK", "GROUP"), "constexpr"),
}
LOSS_SIGNATURE = {
    **ROWS_SIGNATURE,
    **dict.fromkeys(("losses", "lses", "entropies"), "*fp32"),
    "hits": "*i32",
    **dict.fromkeys(("label_smoothing", "z_loss"), "fp32"),
    **dict.fromkeys(("SMOOTHED", "STATISTICS", "GRADIENT"), "constexpr"),
}


def head_case(name: str, rows: int, width: int, vocabulary: int, **options: Any) -> Case:
    return Case(name, {"rows": rows, "width": width, "vocabulary": vocabulary, **options})


def head_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Logits of unit variance; hidden states are rows of a wider buffer; ``ignored``: "some" or "all"."""
    rows, width, vocabulary = (case.sizes[name] for name in ("rows", "width", "vocabulary"))
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    labels_S = torch.randint(vocabulary, (rows,), generator=generator, device=device)
    if "ignored" in case.sizes:
        labels_S[:: 3 if case.sizes["ignored"] == "some" else 1] = -100
    options = {name: case.sizes[name] for name in OPTIONS if name in case.sizes}
    hidden_SD = normal(rows, width + 8).to(dtype)[:, :width]
    weight_VD = (normal(vocabulary, width) / width**0.5).to(dtype)
    inputs: Inputs = {"hidden_SD": hidden_SD, "weight_VD": weight_VD, "labels_S": labels_S, **options}
    if case.sizes.get("bias"):
        inputs["bias_V"] = normal(vocabulary).to(dtype)
    return inputs


def head_flops(inputs: Inputs) -> int:
    """Of the products made in the forward pass, the gradients' among them."""
    tensors = [inputs["hidden_SD"], inputs["weight_VD"]]
    products = 1 + sum(each.requires_grad for each in tensors) * torch.is_grad_enabled()
    return int(2 * inputs["hidden_SD"].numel() * inputs["weight_VD"].shape[0] * products)
