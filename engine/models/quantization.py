"""Quantised base weights: nf4 and int8 through bitsandbytes, on CUDA and CPU; fp8 our own."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig

from ..errors import WhetError
from .fp8_loading import Fp8Config

KERNELS = {"nf4": "load_in_4bit", "int8": "load_in_8bit"}


def quantization_config(
    base_precision: str, compute_dtype: torch.dtype
) -> BitsAndBytesConfig | Fp8Config | None:
    """How transformers should quantise the base while loading; None for 16- and 32-bit weights.

    nf4 is QLoRA's four-bit normal float with double quantisation of its scales (arXiv:2305.14314); int8 is
    LLM.int8() (arXiv:2208.07339); fp8 is e4m3 with a scale a row (:mod:`.fp8`).

    Args:
        base_precision: ``nf4``, ``int8``, ``fp8``, or a float type.
        compute_dtype: type the four-bit weights are unpacked to for a product.
    """
    if base_precision == "fp8":
        return Fp8Config()
    if base_precision not in KERNELS:
        return None
    if base_precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def keep_bits_in_place(model: torch.nn.Module) -> None:
    """Let four-bit weights stay as they are while their model answers, because it will train.

    On a CPU with AVX512-BF16 bitsandbytes rearranges them in place at the first forward pass that needs no
    gradients, and gradients through rearranged weights are wrong (0.50.2: a norm of 0.39 in place of 1.29).
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def set_compute_dtype(config: Any, compute_dtype: torch.dtype) -> None:
    """Let a checkpoint that is already quantised to four bits compute in ``compute_dtype``.

    Args:
        config: the model's configuration, changed in place where it says ``load_in_4bit``.

    Raises:
        WhetError: ``model.quantization`` for a checkpoint quantised by another method.
    """
    settings = config.to_dict().get("quantization_config")
    if settings is None:
        return
    if settings.get("quant_method") != "bitsandbytes":
        raise WhetError(
            "model.quantization",
            f"The checkpoint is quantised with {settings.get('quant_method')!r}; whet trains on bitsandbytes "
            "weights (nf4, int8) and on 16- or 32-bit weights.",
            "Use the model's 16-bit checkpoint with model.precision=nf4.",
        )
    if settings.get("load_in_4bit"):
        config.quantization_config = {
            **settings,
            "bnb_4bit_compute_dtype": str(compute_dtype).removeprefix("torch."),
        }
