"""Tiles of large products, and matrices that a GPU's copy engine brings a tile at a time, by a descriptor.

From compute capability 9.0 on (NVIDIA's TMA) that frees the threads of addresses, whose registers a large
tile of tensor cores needs for its sums, and of masks: what lies outside the matrix is read as zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from .attention_choice import nvidia_capability
from .backend import interpreting


class ProductTile(NamedTuple):
    """Rows and columns of a product's tile, depth of a step, warps, steps in flight."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def describable(*matrices: torch.Tensor) -> bool:
    """Whether the GPU has such an engine and can address these: not empty, rows that begin at multiples of
    16 bytes and share none."""
    capability = nvidia_capability(matrices[0].device)
    if not interpreting() and (capability is None or capability < (9, 0)):
        return False
    return all(x.numel() > 0 and _addressable(x) for x in matrices)


def _addressable(x: torch.Tensor) -> bool:
    row, column = x.stride()
    return column == 1 and row >= x.shape[1] and row * x.itemsize % 16 == 0 and x.data_ptr() % 16 == 0


def descriptor(x: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Of tiles of so many rows and columns of the matrix."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, columns])
