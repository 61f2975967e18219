"""What the weighted gated unit promises beyond its result: where backward writes, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from whet.kernels.backend import forced, interpreting
from whet.kernels.glu import KINDS
from whet.kernels.spec import relative_error
from whet.kernels.weighted_glu import weighted_glu, weighted_glu_backward, weighted_glu_forward


@pytest.fixture(params=["reference", *(["triton"] if interpreting() else [])])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with forced(request.param):
        yield request.param


@pytest.mark.parametrize("kind", KINDS)
def test_backward_writes_over_what_it_reads(kind: str, backend: str) -> None:
    """Gradients lie where gate and up lay in one buffer, the forward result where its gradient lay."""
    torch.manual_seed(0)
    both, dh, share = torch.randn(6, 2 * 70), torch.randn(6, 70), torch.rand(6)
    gate, up = both.chunk(2, dim=1)
    leaves = [tensor.clone().requires_grad_() for tensor in (gate, up, share)]
    with forced("reference"):
        expected = weighted_glu(leaves[0], leaves[1], leaves[2], kind)
        expected.backward(dh)
    dshare = weighted_glu_backward(dh, gate, up, share, kind)
    for found, wanted in zip((both[:, :70], both[:, 70:], dshare), leaves, strict=True):
        assert wanted.grad is not None
        assert relative_error(found, wanted.grad) < 1e-6
    assert relative_error(dh, expected) < 1e-6


def test_one_share_a_row_is_wanted() -> None:
    with pytest.raises(ValueError, match="5 rows"):
        weighted_glu_forward(torch.zeros(5, 8), torch.zeros(5, 8), torch.zeros(4), "swiglu")
