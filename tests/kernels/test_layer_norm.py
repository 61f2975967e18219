"""What the parity check cannot say of the layer norm: where results are written, parts that train alone."""

from __future__ import annotations

import pytest
import torch

from whet.kernels.backend import interpreting
from whet.kernels.layer_norm import layer_norm, layer_norm_backward, layer_norm_forward
from whet.kernels.rows import resident_programs, row_tile

ON_GPU = torch.cuda.is_available() and not interpreting()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
EPS = 1e-5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE)


def test_results_may_replace_what_is_read(backend: str) -> None:
    x, residual, weight, bias = _normal(5, 40), _normal(5, 40), _normal(40), _normal(40)
    y, summed, mean, rstd = layer_norm_forward(x, weight, bias, EPS, residual_TD=residual)
    place = residual.clone()
    y_again, summed_again, _, _ = layer_norm_forward(x, weight, bias, EPS, residual_TD=place, summed_TD=place)
    assert summed_again is place and summed is not None
    assert torch.equal(place, summed) and torch.equal(y_again, y)
    dx, dw, db = layer_norm_backward(y, summed, weight, mean, rstd, residual_gradient_TD=x)
    assert dw is None and db is None
    place = x.clone()
    dx_again, _, _ = layer_norm_backward(
        y, summed, weight, mean, rstd, residual_gradient_TD=place, out_TD=place
    )
    assert dx_again is place and torch.equal(place, dx)


def test_out_may_be_a_slice_of_a_wider_buffer_and_the_rest_is_left_alone(backend: str) -> None:
    x, weight, bias = _normal(6, 24), _normal(24), _normal(24)
    wider = torch.full((6, 40), 7.0, device=DEVICE)
    layer_norm_forward(x, weight, bias, EPS, out_TD=wider[:, 8:32])
    assert torch.equal(wider[:, 8:32], layer_norm_forward(x, weight, bias, EPS)[0])
    assert (wider[:, :8] == 7).all() and (wider[:, 32:] == 7).all()


def test_sums_over_more_rows_than_run_at_once_repeat_bit_by_bit(backend: str) -> None:
    rows = 3 * row_tile(64).rows * resident_programs(DEVICE) + 5
    dy, x, weight = _normal(rows, 64), _normal(rows, 64), _normal(64)
    _, _, mean, rstd = layer_norm_forward(x, weight, None, EPS)
    first = layer_norm_backward(dy, x, weight, mean, rstd, weight_gradient=True)
    second = layer_norm_backward(dy, x, weight, mean, rstd, weight_gradient=True)
    for a, b in zip(first, second, strict=True):
        assert a is not None and b is not None and torch.equal(a, b)
    assert first[2] is not None
    torch.testing.assert_close(first[2].double(), dy.double().sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trained", ["weight", "bias", "x"])
def test_parts_train_alone(backend: str, trained: str) -> None:
    tensors = {"x": _normal(3, 5, 16), "weight": _normal(16), "bias": _normal(16)}
    tensors[trained].requires_grad_()
    upstream = _normal(3, 5, 16)
    layer_norm(tensors["x"], tensors["weight"], tensors["bias"], EPS).backward(upstream)
    ours, tensors[trained].grad = tensors[trained].grad, None
    torch.nn.functional.layer_norm(tensors["x"], (16,), tensors["weight"], tensors["bias"], EPS).backward(
        upstream
    )
    torch.testing.assert_close(ours, tensors[trained].grad, rtol=1e-5, atol=1e-5)
    assert all(tensor.grad is None for name, tensor in tensors.items() if name != trained)


def test_rows_far_from_zero_keep_their_variance(backend: str) -> None:
    """E[x²] - E[x]² in fp32 would leave nothing of it here."""
    x = 4096 + _normal(3, 128) / 16
    y, _, _, _ = layer_norm_forward(x, torch.ones(128, device=DEVICE), None, 0.0)
    exact = torch.nn.functional.layer_norm(x.double(), (128,), eps=0.0)
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_gradients_of_one_result_are_added(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dy, more = (torch.randn(7, 40, generator=generator, dtype=dtype) for _ in range(3))
    weight, bias = (torch.randn(40, generator=generator, dtype=dtype) for _ in range(2))
    _, _, *statistics = layer_norm_forward(x, weight, bias, 1e-5)
    dx, _, _ = layer_norm_backward(dy, x, weight, *statistics, more_dy_TD=more)
    wanted, _, _ = layer_norm_backward(dy + more, x, weight, *statistics)
    torch.testing.assert_close(dx, wanted)
