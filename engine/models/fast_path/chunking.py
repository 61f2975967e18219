"""Halves of layers take long rows a chunk of tokens at a time."""

from __future__ import annotations

import torch


def chunks(tokens: int, chunk: int) -> list[slice]:
    """Slices of at most ``chunk`` of so many tokens; an empty one where there are none."""
    return [slice(start, min(start + chunk, tokens)) for start in range(0, tokens, chunk)] or [slice(0, 0)]


def add_up(total: torch.Tensor | None, part: torch.Tensor | None) -> torch.Tensor | None:
    """``part`` added to the ``total`` of the chunks before, in place; None where there is no gradient."""
    return part if total is None or part is None else total.add_(part)
