"""What pooling refuses, and what it makes of nothing; its numbers are the parity tests' affair."""

from __future__ import annotations

import pytest
import torch

from whet.kernels.segment_pool import segment_pool


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="mean, first, last"):
        segment_pool(torch.zeros(3, 2), torch.tensor([0, 3], dtype=torch.int32), "max")


@pytest.mark.parametrize(("mode", "first"), [("mean", 1.5), ("first", 1.0), ("last", 2.0)])
def test_empty_documents_are_zeros_and_get_no_gradient(mode: str, first: float) -> None:
    x = torch.tensor([[1.0], [2.0], [5.0]], requires_grad=True)
    offsets = torch.tensor([0, 2, 2, 3, 3], dtype=torch.int32)
    pooled = segment_pool(x, offsets, mode)
    assert pooled.flatten().tolist() == [first, 0.0, 5.0, 0.0]
    pooled[1].sum().backward()
    assert x.grad is not None and not x.grad.any()
