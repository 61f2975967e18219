"""How far the outputs of two models lie apart. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def furthest(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """The largest difference of any two numbers at the same place; NaN where one of them is: Python's ``max``
    may pass over that."""
    apart = [(left - right).abs().max() for left, right in zip(one, other, strict=True)]
    return float(torch.stack(apart).max())
