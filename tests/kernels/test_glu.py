"""Gated units in place, with the forward result again, and at the ends of their range."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from whet.kernels.backend import forced, interpreting
from whet.kernels.fp8 import quantize_rows
from whet.kernels.glu import KINDS, glu_backward, glu_forward, glu_quantized_forward
from whet.kernels.spec import relative_error

DEVICE = torch.device("cuda" if torch.cuda.is_available() and not interpreting() else "cpu")
IN_TRANSFORMERS = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_pytorch_tanh"}
TOKENS, WIDTH = 5, 37


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def halves(buffer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up in a buffer that has columns before, between and after them."""
    return buffer[:, 1 : 1 + WIDTH], buffer[:, 3 + WIDTH : 3 + 2 * WIDTH]


def outside(buffer: torch.Tensor) -> torch.Tensor:
    """The columns that are neither."""
    return torch.cat((buffer[:, :1], buffer[:, 1 + WIDTH : 3 + WIDTH], buffer[:, 3 + 2 * WIDTH :]), dim=1)


def gradient_of(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("kind", KINDS)
def test_backward_writes_over_gate_and_up_and_gives_h_again(backend: str, kind: str) -> None:
    buffer = drawn(TOKENS, 2 * WIDTH + 5)
    before, (gate, up) = buffer.clone(), halves(buffer)
    dh, wide = drawn(TOKENS, WIDTH, seed=1), drawn(TOKENS, WIDTH + 2, seed=2)
    leaves = [half.double().clone().requires_grad_() for half in (gate, up)]
    exact = ACT2FN[IN_TRANSFORMERS[kind]](leaves[0]) * leaves[1]
    exact.backward(dh.double())

    forward = glu_forward(gate, up, kind)
    assert torch.equal(buffer, before)
    assert relative_error(forward, exact) < 1e-6

    h = wide[:, 1:-1]
    dgate, dup = glu_backward(dh, gate, up, kind, h_TF=h)
    assert dgate is gate and dup is up
    assert torch.equal(h, forward)
    assert relative_error(gate, gradient_of(leaves[0])) < 1e-6
    assert relative_error(up, gradient_of(leaves[1])) < 1e-6
    assert torch.equal(outside(buffer), outside(before))
    untouched = drawn(TOKENS, WIDTH + 2, seed=2)[:, [0, -1]]
    assert torch.equal(wide[:, [0, -1]], untouched)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_elsewhere_and_h_over_its_gradient(backend: str, kind: str) -> None:
    gate, up, dh = drawn(3, TOKENS, WIDTH)
    exact_h, inputs = glu_forward(gate, up, kind), (gate.clone(), up.clone())
    elsewhere = (torch.empty_like(gate), torch.empty_like(up))
    glu_backward(dh, gate, up, kind, out=elsewhere)
    assert torch.equal(gate, inputs[0]) and torch.equal(up, inputs[1])
    glu_backward(dh, gate, up, kind, h_TF=dh)
    assert torch.equal(gate, elsewhere[0]) and torch.equal(up, elsewhere[1])
    assert torch.equal(dh, exact_h)


def test_forward_may_write_over_its_input(backend: str) -> None:
    gate, up = drawn(2, TOKENS, WIDTH)
    exact = glu_forward(gate, up, "swiglu")
    assert torch.equal(glu_forward(gate, up, "swiglu", out_TF=gate), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [0, 1, TOKENS])
def test_quantised_in_one_pass_as_in_two(backend: str, tokens: int, dtype: torch.dtype) -> None:
    buffer = drawn(tokens, 2 * WIDTH + 5).to(dtype)
    gate, up = halves(buffer)
    gate[tokens // 2 :, :] *= 30
    out = torch.empty(tokens, WIDTH + 3, dtype=dtype, device=DEVICE)[:, 1:-2]
    h, h8, scale = glu_quantized_forward(gate, up, "swiglu", out_TF=out)
    assert h is out
    assert torch.equal(h, glu_forward(gate, up, "swiglu"))
    exact8, exact_scale = quantize_rows(h)
    assert torch.equal(h8.view(torch.uint8), exact8.view(torch.uint8))
    assert torch.equal(scale, exact_scale)


def test_exact_geglu_keeps_the_digits_of_small_values() -> None:
    gate = torch.linspace(-9, 9, 3001, device=DEVICE)[None]
    with forced("triton"):
        h = glu_forward(gate, torch.ones_like(gate), "geglu")
    wide = gate.double()
    exact = wide * torch.special.erfc(-wide * 0.5**0.5) / 2
    torch.testing.assert_close(h.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_finite_at_the_ends(kind: str) -> None:
    """Activation and slope saturate at 0 and x, 0 and 1, with no infinity times zero on the way."""
    gate = torch.tensor([[-3e38, -1e20, -1e4, -60.0, 0.0, 60.0, 1e4, 1e20, 3e38]], device=DEVICE)
    up, dh = torch.ones_like(gate), torch.ones_like(gate)
    with forced("triton"):
        h = glu_forward(gate, up, kind)
        dgate, _ = glu_backward(dh, gate.clone(), up, kind)
    assert relative_error(h, gate.clamp_min(0)) < 1e-6
    assert torch.allclose(dgate, (gate > 0).float() + 0.5 * (gate == 0).float(), atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    gate, up = drawn(2, TOKENS, WIDTH)
    with pytest.raises(ValueError, match="'relu'; known are swiglu"):
        glu_forward(gate, up, "relu")
    with pytest.raises(ValueError, match="they have to agree"):
        glu_forward(gate, up[1:], "swiglu")
