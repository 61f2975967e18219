"""How much memory an export may take: a share of what is free when it starts. Light."""

from __future__ import annotations

import math

from ...errors import WhetError
from ...hardware import host_memory

DEFAULT_SHARE = 0.75
MAX_SHARE = 0.95
"""The rest is what Python, the files' cache and everybody else need."""
BLOCK_BYTES = 1 << 30
"""Larger blocks are no faster."""
WORK_BYTES = 20
"""A number of a block while it is merged: stored, in float32, its update, the sum, and the result."""


def check_share(share: float) -> float:
    """``share`` itself. Raises WhetError ``export.memory_share`` unless 0 < share <= 0.95."""
    if not 0 < share <= MAX_SHARE:
        raise WhetError(
            "export.memory_share",
            f"maximum_memory_usage={share!r} is no share of memory that an export can take.",
            f"Use a value above 0 and up to {MAX_SHARE}; the default is {DEFAULT_SHARE}.",
        )
    return share


def block_bytes(share: float = DEFAULT_SHARE) -> int:
    """Most bytes that one block of a tensor and its intermediates may take. Raises as :func:`check_share`."""
    return min(BLOCK_BYTES, int(check_share(share) * host_memory()[1]))


def block_rows(shape: tuple[int, ...], memory: int) -> int:
    """Rows of a tensor that ``memory`` bytes suffice for, at least one."""
    return max(1, memory // (WORK_BYTES * math.prod(shape[1:])))
