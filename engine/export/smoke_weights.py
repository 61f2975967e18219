"""Every tensor of a quantised file against the file it was made from, block by block. Light (numpy, gguf).

What a model answers hardly shows one damaged block, an expert in another's place or a layer of zeros; what
rounding does to a tensor is known to within a few per cent for each type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .gguf.reading import open_gguf

BLOCK = 256
"""Weights that k-quants round together; types of smaller blocks are looked at in the same portions."""
CHUNK = 1 << 22
"""Most weights held in memory at once, as float32 of both sides."""
BUDGET = 1 << 28
"""Most weights compared, half a minute's work; of larger models each tensor gives an even share of rows."""
SMALL = 0.01
"""Of a tensor's root mean square: blocks below are padding or dead rows, where anything is a large error."""

Array = np.ndarray[Any, Any]


def compare_weights(gguf: Path, source: Path, budget: int = BUDGET) -> dict[str, Any]:
    """Relative errors (root mean square of the difference over that of the weights) by type of tensor.

    Returns:
        ``types``: type -> tensors, the ``worst`` tensor's error and ``name``, the worst ``block``'s error and
        the name of its tensor ``block_name``; ``missing`` and ``added``: names of tensors that only one file
        has; ``reshaped``: those of another shape; ``share``: of the weights that were looked at.
    """
    mine = {tensor.name: tensor for tensor in open_gguf(gguf).tensors}
    theirs = {tensor.name: tensor for tensor in open_gguf(source).tensors}
    both = [name for name in theirs if name in mine]
    reshaped = [name for name in both if _shape(mine[name]) != _shape(theirs[name])]
    total = sum(int(tensor.n_elements) for tensor in theirs.values())
    step = max(1, math.ceil(total / budget))
    types: dict[str, dict[str, Any]] = {}
    for name in both:
        if name in reshaped:
            continue
        kind = mine[name].tensor_type.name
        error, block = _errors(mine[name], theirs[name], step)
        entry = types.setdefault(kind, {"tensors": 0, "worst": -1.0, "block": -1.0})
        entry["tensors"] += 1
        if not error <= entry["worst"]:
            entry |= {"worst": error, "name": name}
        if not block <= entry["block"]:
            entry |= {"block": block, "block_name": name}
    return {
        "types": types,
        "missing": [name for name in theirs if name not in mine],
        "added": [name for name in mine if name not in theirs],
        "reshaped": reshaped,
        "share": 1 / step,
    }


def _shape(tensor: Any) -> list[int]:
    """Without dimensions of one at its end, which llama.cpp drops when it writes."""
    shape = [int(size) for size in tensor.shape]
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return shape


def _errors(mine: Any, theirs: Any, step: int) -> tuple[float, float]:
    """Relative error of the tensor, and of its worst block."""
    apart, size, count = 0.0, 0.0, 0
    blocks: list[tuple[Array, Array]] = []
    for given, wanted in zip(_chunks(mine, step), _chunks(theirs, step), strict=True):
        width = math.gcd(given.shape[-1], BLOCK)
        squares = [np.square(x, dtype=np.float64).reshape(-1, width) for x in (given - wanted, wanted)]
        apart, size, count = apart + squares[0].sum(), size + squares[1].sum(), count + wanted.size
        blocks.append((squares[0].mean(axis=1), squares[1].mean(axis=1)))
    if size == 0.0:
        return (0.0, 0.0) if apart == 0.0 else (math.inf, math.inf)
    least = SMALL**2 * size / count
    worst = max(float(np.max(error / np.maximum(value, least))) for error, value in blocks)
    return math.sqrt(apart / size), math.sqrt(worst)


def _chunks(tensor: Any, step: int) -> Iterator[Array]:
    """The tensor's rows as float32, every ``step``-th one."""
    from gguf import dequantize

    data = tensor.data.reshape(-1, tensor.data.shape[-1])[::step]
    rows = max(1, CHUNK // int(tensor.shape[0]))
    for start in range(0, len(data), rows):
        yield dequantize(np.ascontiguousarray(data[start : start + rows]), tensor.tensor_type)
