"""Merged weights in FP8 for vLLM and SGLang: compressed-tensors' `float-quantized`. Needs torch.

Each row of a linear layer (an output channel) is e4m3 with a scale of its own; activations are scaled a token
at a time while serving. A row's scale is its largest magnitude over 448, rounded up to the 16-bit type it is
stored in and then used for rounding, so that what readers compute is what was rounded here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..base_weights import BaseWeights
from .linears import EXPERT, find_linears
from .memory import BLOCK_BYTES
from .rewriting import TargetReport, Weights, rewrite
from .shards import ShardWriter

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max


class FP8:
    """compressed-tensors, FP8 weights a channel, dynamic FP8 activations a token."""

    format = "compressed-tensors fp8"

    def parts(self, name: str) -> list[str]:
        return [name, f"{name}_scale"]

    def bytes(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) + 4 * shape[0]

    def write(self, writer: ShardWriter, weights: Weights, name: str) -> None:
        shape = weights.shape(name)
        scales_O1 = torch.cat([row_scales(block) for block in weights.blocks(name)])
        writer.stream(name, E4M3, shape, _rounded(weights.blocks(name), scales_O1))
        writer.add(f"{name}_scale", scales_O1)

    def config(self, dtype: torch.dtype, left_out: list[str]) -> dict[str, Any]:
        eight_bits = {"num_bits": 8, "type": "float", "symmetric": True}
        group = {
            "targets": ["Linear"],
            "weights": {**eight_bits, "strategy": "channel", "dynamic": False},
            "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": left_out,
        }


def row_scales(weight_OI: torch.Tensor) -> torch.Tensor:
    """[O, 1] in the weight's own type: the smallest scales that keep every row within e4m3; 1 for zeros."""
    exact = weight_OI.float().abs().amax(dim=1, keepdim=True) / LARGEST
    rounded = exact.to(weight_OI.dtype)
    larger = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    scales = torch.where(rounded.float() < exact, larger, rounded)
    return torch.where(exact > 0, scales, torch.ones_like(scales))


def round_rows(weight_OI: torch.Tensor, scales_O1: torch.Tensor) -> torch.Tensor:
    """[O, I] e4m3."""
    return (weight_OI.float() / scales_O1.float()).clamp(-LARGEST, LARGEST).to(E4M3)


def _rounded(blocks: Iterator[torch.Tensor], scales_O1: torch.Tensor) -> Iterator[torch.Tensor]:
    start = 0
    for block in blocks:
        yield round_rows(block, scales_O1[start : start + len(block)])
        start += len(block)


def write_fp8(
    model_dir: Path,
    out_dir: Path,
    progress: Callable[[float, float], None] | None = None,
    *,
    memory: int = BLOCK_BYTES,
) -> TargetReport:
    """Write a 16-bit model folder with its linear layers and experts in FP8; embedding, head, norms and
    routers stay in 16 bits.

    Args as for :func:`.four_bit.write_four_bit`; no tensor is held whole. Raises as
    :func:`.rewriting.rewrite` and :func:`.linears.find_linears`.
    """
    experts = {name for name in BaseWeights(model_dir).names() if EXPERT.search(name)}
    linears = find_linears(model_dir)
    linears = replace(linears, weights=linears.weights | experts)
    return rewrite(model_dir, out_dir, FP8(), linears, progress, memory=memory)
