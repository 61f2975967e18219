"""What packed batches of an encoder are filled up to, so that a few CUDA graphs serve all of them. Light."""

from __future__ import annotations

TOKENS = 256
"""Packed rows of a graph are filled up to a multiple of this."""


def coarser(multiple: int, tokens: int) -> int:
    """A power of two that grows with a batch: sums of many lengths differ widely, and each number of tokens
    would be a graph of its own. About a sixteenth is filling at most."""
    if multiple == 1 or tokens < 16 * multiple:
        return multiple
    return int(1 << ((tokens // 16).bit_length() - 1))
