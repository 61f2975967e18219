"""Merged weights in NF4 as bitsandbytes stores them, half a byte a number. Needs torch.

Dettmers et al., 2023: blocks of 64 numbers share a scale, and the scales are themselves held in 8 bits
(double quantisation). What is written is what transformers would hold after `load_in_4bit=True`, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import quantize_4bit
from transformers import BitsAndBytesConfig

from .linears import find_linears
from .memory import BLOCK_BYTES
from .rewriting import TargetReport, Weights, rewrite
from .shards import ShardWriter

PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4")
STATE_BYTES = 4096
"""Both tables and the description of a weight, generously."""


class NF4:
    """bitsandbytes' normal float of 4 bits with double quantisation."""

    format = "bitsandbytes nf4"

    def parts(self, name: str) -> list[str]:
        return [name, *(f"{name}.{part}" for part in PARTS)]

    def bytes(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * 9 // 16 + STATE_BYTES

    def write(self, writer: ShardWriter, weights: Weights, name: str) -> None:
        # The scales' own scale is one of the whole matrix, so it is held whole.
        packed, state = quantize_4bit(weights.whole(name), compress_statistics=True, quant_type="nf4")
        writer.add(name, packed)
        for part, value in state.as_dict(packed=True).items():
            writer.add(f"{name}.{part}", value)

    def config(self, dtype: torch.dtype, left_out: list[str]) -> dict[str, Any]:
        return nf4_config(dtype, left_out).to_dict()


def nf4_config(dtype: torch.dtype, left_out: list[str] | None = None) -> BitsAndBytesConfig:
    """How transformers quantises, or loads, such weights; it computes in ``dtype``."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=left_out,
    )


def write_four_bit(
    model_dir: Path,
    out_dir: Path,
    progress: Callable[[float, float], None] | None = None,
    *,
    memory: int = BLOCK_BYTES,
) -> TargetReport:
    """Write a 16-bit model folder with its linear layers in NF4; embedding, head, norms and stacked experts
    stay in 16 bits, as transformers would leave them.

    Args:
        model_dir: merged weights.
        out_dir: appears whole at the end.
        progress: called with (tensors done, tensors in all).
        memory: as for :func:`..merging.merge`; a linear layer's weight is held whole all the same.

    Raises as :func:`.rewriting.rewrite` and :func:`.linears.find_linears`.
    """
    return rewrite(model_dir, out_dir, NF4(), find_linears(model_dir), progress, memory=memory)
