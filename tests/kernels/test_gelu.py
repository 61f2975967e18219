"""GELU with its bias: in place, the forward result again, the bias' gradient over many rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from whet.kernels.backend import forced, interpreting
from whet.kernels.gelu import APPROXIMATIONS, gelu, gelu_backward, gelu_forward
from whet.kernels.spec import relative_error

DEVICE = torch.device("cuda" if torch.cuda.is_available() and not interpreting() else "cpu")
TOKENS, WIDTH = 11, 37


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def gradient_of(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_in_place_with_h_again(backend: str, approximate: str, biased: bool, monkeypatch: Any) -> None:
    """Also the bias' gradient from more rows than one group takes, the last group not full."""
    monkeypatch.setattr("whet.kernels.gelu._GROUPS", 2)
    wide, dy = drawn(TOKENS, WIDTH + 3), drawn(TOKENS, WIDTH, seed=1)
    before, x = wide.clone(), wide[:, 1:-2]
    bias = drawn(WIDTH, seed=2) if biased else None
    leaves = [tensor.double().clone().requires_grad_() for tensor in (x, drawn(WIDTH, seed=2) * biased)]
    exact = F.gelu(leaves[0] + leaves[1], approximate=approximate)
    exact.backward(dy.double())

    y = gelu_forward(x, bias_F=bias, approximate=approximate)
    assert torch.equal(wide, before)
    assert relative_error(y, exact) < 1e-6

    dx, dbias = gelu_backward(
        dy, x, bias_F=bias, approximate=approximate, bias_gradient=True, out_TF=x, y_TF=dy
    )
    assert dx is x and dbias is not None
    assert torch.equal(dy, y)
    assert relative_error(x, gradient_of(leaves[0])) < 1e-6
    assert relative_error(dbias, gradient_of(leaves[1])) < 1e-6
    assert torch.equal(wide[:, [0, -2, -1]], before[:, [0, -2, -1]])


def test_bias_gradient_repeats(backend: str) -> None:
    dy, x = drawn(2, 100, WIDTH)
    first, again = (gelu_backward(dy, x, bias_gradient=True)[1] for _ in range(2))
    assert first is not None and again is not None
    assert torch.equal(first, again)


def test_any_leading_dimensions(backend: str) -> None:
    x, bias = drawn(2, 3, WIDTH), drawn(WIDTH, seed=1)
    assert relative_error(gelu(x, bias), F.gelu(x + bias)) < 1e-6
    assert gelu(x[:0]).shape == (0, 3, WIDTH)


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_finite_at_the_ends(approximate: str) -> None:
    x = torch.tensor([[-3e38, -1e20, -1e4, -60.0, 0.0, 60.0, 1e4, 1e20, 3e38]], device=DEVICE)
    with forced("triton"):
        y = gelu_forward(x, approximate=approximate)
        dx, _ = gelu_backward(torch.ones_like(x), x, approximate=approximate)
    assert relative_error(y, x.clamp_min(0)) < 1e-6
    assert torch.allclose(dx, (x > 0).float() + 0.5 * (x == 0).float(), atol=1e-6)


def test_an_unknown_approximation_is_refused() -> None:
    with pytest.raises(ValueError, match="'quick'; known are none, tanh"):
        gelu(drawn(2, 3), approximate="quick")
