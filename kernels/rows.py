"""What the row-wise kernels share: the shape of a launch, and rows that a kernel can address.

A row-wise kernel reads a matrix of T rows and D columns, reduces along each row, and writes as many rows. One
program holds whole rows in registers, so that every element is read once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton

WIDEST = 65536  # elements; the widest row that one program's registers hold


class Tile(NamedTuple):
    """Rows a program, columns (a power of two), warps."""

    rows: int
    columns: int
    warps: int


@lru_cache(maxsize=256)
def row_tile(width: int) -> Tile:
    """The tile of a program for rows of ``width`` elements: at least 4,096 elements, 16 to 32 a thread.

    That is two to four 16-byte accesses a thread and tensor in 16-bit types, which keeps enough bytes in
    flight to fill the memory bus.

    Raises:
        ValueError: if a row is wider than :data:`WIDEST`.
    """
    if width > WIDEST:
        raise ValueError(f"rows of {width} elements; row-wise kernels take at most {WIDEST}")
    columns = triton.next_power_of_2(width)
    rows = max(1, 4096 // columns)
    return Tile(rows, columns, 8 if rows * columns <= 8192 else min(32, rows * columns // 1024))


@lru_cache(maxsize=16)
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def resident_programs(device: torch.device, per_processor: int = 2) -> int:
    """Programs that run at once, for kernels that loop over rows; few on the CPU, where only tests come."""
    return _processors(device) * per_processor if device.type == "cuda" else 3


def addressable(x_TD: torch.Tensor) -> torch.Tensor:
    """``x_TD`` with neighbouring elements of a row next to each other; a copy only where they are not."""
    return x_TD if x_TD.stride(1) == 1 or x_TD.shape[1] < 2 else x_TD.contiguous()


def row_stride(x_TD: torch.Tensor | None) -> int:
    """Elements from one row to the next; 0 for no tensor."""
    return 0 if x_TD is None else x_TD.stride(0)


def output(
    out_TD: torch.Tensor | None, like_TD: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """``out_TD`` after a check, or a fresh contiguous matrix of ``like_TD``'s shape.

    Raises:
        ValueError: if ``out_TD`` has another shape, or its rows are not contiguous.
    """
    if out_TD is None:
        return torch.empty(like_TD.shape, dtype=dtype or like_TD.dtype, device=like_TD.device)
    if out_TD.shape != like_TD.shape or (out_TD.stride(1) != 1 and out_TD.shape[1] > 1):
        raise ValueError(
            f"out has shape {tuple(out_TD.shape)} and strides {out_TD.stride()}; "
            f"needed is {tuple(like_TD.shape)} with unit stride along the row"
        )
    return out_TD


def accumulation_type(dtype: torch.dtype) -> torch.dtype:
    """The type a reference computes in: fp32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
