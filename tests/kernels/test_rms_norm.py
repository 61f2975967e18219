"""What the parity check cannot say of the RMS norm: where results go, FP8 beside y, repeatability."""

from __future__ import annotations

import pytest
import torch

from whet.kernels.backend import interpreting
from whet.kernels.fp8 import quantize_rows
from whet.kernels.rms_norm import rms_norm, rms_norm_backward, rms_norm_forward, rms_norm_quantized_forward
from whet.kernels.rows import resident_programs, row_tile

ON_GPU = torch.cuda.is_available() and not interpreting()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
EPS = 1e-6


def _normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_the_sum_may_replace_the_residual_or_the_input(backend: str) -> None:
    x, residual, weight = _normal(5, 40), _normal(5, 40), _normal(40)
    y, summed, rstd = rms_norm_forward(x, weight, EPS, residual_TD=residual)
    for place in ("residual", "x"):
        copies = {"x": x.clone(), "residual": residual.clone()}
        y_again, summed_again, rstd_again = rms_norm_forward(
            copies["x"], weight, EPS, residual_TD=copies["residual"], summed_TD=copies[place]
        )
        assert summed_again is copies[place] and summed is not None
        for ours, expected in ((y_again, y), (summed_again, summed), (rstd_again, rstd)):
            assert torch.equal(ours, expected)


def test_out_may_be_a_slice_of_a_wider_buffer_and_the_rest_is_left_alone(backend: str) -> None:
    x, weight, wider = _normal(6, 24), _normal(24), torch.full((6, 40), 7.0, device=DEVICE)
    y, _, rstd = rms_norm_forward(x, weight, EPS)
    out, _, _ = rms_norm_forward(x, weight, EPS, out_TD=wider[:, 8:32])
    assert torch.equal(out, y) and torch.equal(wider[:, 8:32], y)
    dx, _ = rms_norm_backward(y, x, weight, rstd, out_TD=wider[:, 8:32])
    assert torch.equal(dx, rms_norm_backward(y, x, weight, rstd)[0])
    assert (wider[:, :8] == 7).all() and (wider[:, 32:] == 7).all()


@pytest.mark.parametrize("place", ["residual_gradient", "dy"])
def test_the_gradient_may_replace_one_that_it_reads(backend: str, place: str) -> None:
    dy, x, weight, other = _normal(5, 40), _normal(5, 40), _normal(40), _normal(5, 40)
    rstd = rms_norm_forward(x, weight, EPS)[2]
    expected, dw = rms_norm_backward(dy, x, weight, rstd, residual_gradient_TD=other, weight_gradient=True)
    ours, dw_again = rms_norm_backward(
        dy, x, weight, rstd, residual_gradient_TD=other, weight_gradient=True,
        out_TD=other if place == "residual_gradient" else dy,
    )  # fmt: skip
    assert ours is (other if place == "residual_gradient" else dy)
    assert torch.equal(ours, expected)
    assert dw is not None and dw_again is not None and torch.equal(dw, dw_again)


def test_a_weight_gradient_over_more_rows_than_run_at_once_repeats_bit_by_bit(backend: str) -> None:
    rows = 3 * row_tile(64).rows * resident_programs(DEVICE) + 5
    dy, x, weight = _normal(rows, 64), _normal(rows, 64), _normal(64)
    rstd = rms_norm_forward(x, weight, EPS)[2]
    first, second = (rms_norm_backward(dy, x, weight, rstd, weight_gradient=True)[1] for _ in range(2))
    assert first is not None and second is not None and torch.equal(first, second)
    exact = (dy.double() * x.double() * torch.rsqrt(x.double().square().mean(1, keepdim=True) + EPS)).sum(0)
    torch.testing.assert_close(first.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T", [0, 5])
def test_quantised_beside_y_is_y_quantised(backend: str, dtype: torch.dtype, T: int) -> None:
    x, residual, weight = _normal(T, 48, dtype=dtype), _normal(T, 48, dtype=dtype), _normal(48, dtype=dtype)
    y, summed, rstd, y8, scale = rms_norm_quantized_forward(x, weight, EPS, offset=1.0, residual_TD=residual)
    plain = rms_norm_forward(x, weight, EPS, offset=1.0, residual_TD=residual)
    for ours, expected in zip((y, summed, rstd), plain, strict=True):
        assert ours is not None and expected is not None and torch.equal(ours, expected)
    expected8, expected_scale = quantize_rows(y)
    assert torch.equal(y8.float(), expected8.float()) and torch.equal(scale, expected_scale)


def test_a_weight_of_another_type(backend: str) -> None:
    x = _normal(4, 32, dtype=torch.float16).requires_grad_()
    weight = _normal(32).requires_grad_()
    y = rms_norm(x, weight, EPS)
    y.float().square().sum().backward()
    assert x.grad is not None and weight.grad is not None
    assert (y.dtype, x.grad.dtype, weight.grad.dtype) == (torch.float16, torch.float16, torch.float32)


def test_a_gradient_of_the_sum_alone_passes_through(backend: str) -> None:
    x, residual = _normal(2, 3, 8).requires_grad_(), _normal(2, 3, 8).requires_grad_()
    _, summed = rms_norm(x, _normal(8), EPS, residual=residual)
    summed.backward(torch.ones_like(summed))
    for gradient in (x.grad, residual.grad):
        assert gradient is not None and torch.equal(gradient, torch.ones_like(gradient))


def test_an_output_that_rows_do_not_fit_is_refused(backend: str) -> None:
    x, weight = _normal(4, 8), _normal(8)
    for out in (_normal(4, 9), _normal(8, 4).t()):
        with pytest.raises(ValueError, match="out has shape"):
            rms_norm_forward(x, weight, EPS, out_TD=out)
