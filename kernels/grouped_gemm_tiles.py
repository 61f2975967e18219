"""Tiles of a mixture's grouped products, and what is compiled ahead of time with them."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton

from .descriptors import ProductTile
from .grouped_gemm_triton import grouped_matmul_kernel, grouped_outer_kernel, schedule_kernel
from .spec import Compilation

CACHED_BYTES = 16 * 2**20
"""Of an expert's weights, that the smallest of the GPUs' caches holds beside what else goes through."""


def matmul_tile(rows: int, experts: int, columns: int, dtype: torch.dtype, capability: int) -> ProductTile:
    """The tile for ``rows`` rows in ``experts`` groups.

    Its buffers fit into 96 KiB, 64 KiB before sm_80; into 192 KiB on the GPUs that have as much, where deeper
    steps are 5 to 20 % faster (H200).
    """
    mean = max(1, rows // experts)
    height = 128 if mean >= 96 else 64 if mean >= 48 else 16
    width = min(triton.next_power_of_2(max(columns, 16)), 256 if columns % 256 == 0 else 128)
    if dtype == torch.float32 or capability < 80:  # without tensor cores; deeper steps spill registers
        return ProductTile(min(height, 64), min(width, 64), 16, 4, 2)
    if width <= 32 and height >= 64:  # a LoRA factor's rank: x goes by once, and only that takes time
        return ProductTile(64, width, 128, 4, 4)
    if height == 128 and width == 256 and 90 <= capability < 120:
        return ProductTile(128, 256, 64, 8, 4)
    if height == 128 and width == 256:
        return ProductTile(128, 256, 32, 8, 4)
    return ProductTile(height, min(width, 128), 64, 8 if height * width >= 128 * 128 else 4, 3)


def row_group(expert_bytes: int) -> int:
    """Row tiles that take a column tile one after the other: where an expert's weights do not stay in the
    cache, each row tile would read all of them from memory."""
    return 8 if expert_bytes > CACHED_BYTES else 1


def outer_tile(m: int, n: int, dtype: torch.dtype, capability: int) -> ProductTile:
    """The tile of an (m, n) product over rows; ``depth`` are the rows of a step."""
    side = 64 if dtype == torch.float32 or capability < 80 else 128
    height, width = (min(side, triton.next_power_of_2(max(size, 16))) for size in (m, n))
    return ProductTile(height, width, 32 if side == 64 else 64, 8 if height * width >= 128 * 128 else 4, 2)


def _described(gathered: Compilation, tile: ProductTile) -> Compilation:
    """The same where rows of x lie in the experts' order and a copy engine reads both operands."""
    w_tile = (tile.columns, tile.depth)
    if gathered.constants["TRANSPOSED"]:
        w_tile = w_tile[::-1]
    operands = {"x": (tile.rows, tile.depth), "w": w_tile}
    descriptors = {name: f"tensordesc<bf16[{rows}, {columns}]>" for name, (rows, columns) in operands.items()}
    return replace(
        gathered,
        signature={**gathered.signature, **descriptors},
        constants={**gathered.constants, "DESCRIBED": True, "GATHER": False},
    )


def compilations() -> tuple[Compilation, ...]:
    """The kernels in the shapes of usual models, for GPUs with and without tensor cores."""
    pointers = dict.fromkeys("xwhby", "*T") | dict.fromkeys(
        ("gather", "offsets", "tile_expert", "tile_row"), "*i32"
    )
    sizes = dict.fromkeys(("N", "K", "R", "x_row", "h_row", "y_row"), "i32") | {"scale": "fp32"}
    sizes["tiles"] = "i32"
    flags = {"EVEN_K": True, "DESCRIBED": False, "GATHER": True, "LORA": True, "CAST": False, "TILE_R": 16}
    found = []
    for capability, most, columns in (
        (75, 79, 1536), (80, 89, 1536), (90, 100, 1536), (120, 120, 1536), (80, 120, 1408), (80, 89, 16),
        (90, 120, 16),
    ):  # fmt: skip
        for transposed in (False, True):
            tile = matmul_tile(65536, 128, columns, torch.float16, capability)
            constants = {"TILE_M": tile.rows, "TILE_N": tile.columns, "TILE_K": tile.depth, **flags}
            constants |= {"TRANSPOSED": transposed, "GROUP": 8 if columns == 1536 else 1}
            signature = pointers | sizes | dict.fromkeys(constants, "constexpr")
            wanted = Compilation(
                grouped_matmul_kernel, signature, constants, tile.warps, tile.stages, capability, most
            )
            found.append(wanted)
            if capability >= 90:
                found.append(_described(wanted, tile))
    pointers = {"a": "*T", "b": "*T", "out": "*fp32", "gather": "*i32", "offsets": "*i32"}
    sizes = dict.fromkeys(("M", "N", "a_row", "b_row"), "i32")
    for m, n, capability in ((16, 2048, 75), (16, 2048, 80), (1536, 16, 80), (1536, 2048, 80)):
        tile = outer_tile(m, n, torch.float16, capability)
        constants = {"TILE_M": tile.rows, "TILE_N": tile.columns, "TILE_S": tile.depth}
        constants |= {"GATHER": True, "CAST": False}
        signature = pointers | sizes | dict.fromkeys(constants, "constexpr")
        found.append(
            Compilation(grouped_outer_kernel, signature, constants, tile.warps, tile.stages, capability)
        )
    signature = dict.fromkeys(("offsets", "tile_expert", "tile_row"), "*i32")
    signature |= {"experts": "i32", "tiles": "i32"} | dict.fromkeys(("TILE", "EXPERTS", "BLOCK"), "constexpr")
    found.append(Compilation(schedule_kernel, signature, {"TILE": 128, "EXPERTS": 128, "BLOCK": 128}, 1))
    return tuple(found)
