"""What the parity check cannot say of FP8: the conversion itself, rows that are not numbers, the gradient."""

from __future__ import annotations

import pytest
import torch

from whet.kernels.backend import interpreting
from whet.kernels.fp8 import fp8_matmul, quantize_rows, transpose_fp8
from whet.kernels.fp8_triton import RESIDENT_WARPS, WIDE_SCALED, scaled_row, stages_of
from whet.kernels.spec import relative_error

ON_GPU = torch.cuda.is_available() and not interpreting()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
NAN = float("nan")
INFINITY = float("inf")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE)


def _numbers() -> torch.Tensor:
    """Every finite e4m3 number in order, as fp32."""
    codes = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(torch.float8_e4m3fn).float()
    return codes[codes.isfinite()].sort().values


def test_conversion_is_torchs_for_numbers_ties_and_their_neighbours(backend: str) -> None:
    numbers = _numbers()
    ties = (numbers[1:] + numbers[:-1]) / 2
    below, above = (torch.nextafter(ties, ties + side) for side in (-1, 1))
    values = torch.cat([numbers, ties, below, above])  # 448 is among them: the scale is 1
    x8, scale = quantize_rows(values[None])
    assert scale.tolist() == [1.0]
    assert torch.equal(x8.view(torch.uint8)[0], values.to(torch.float8_e4m3fn).view(torch.uint8))


def test_a_row_of_zeros_has_scale_one(backend: str) -> None:
    x = _normal(3, 20)
    x[1] = 0
    x8, scale = quantize_rows(x)
    assert scale[1] == 1 and (x8[1].float() == 0).all()
    torch.testing.assert_close(scale[[0, 2]], x.abs().amax(1)[[0, 2]] / 448)


def test_what_is_not_a_number_stays_in_its_row(backend: str) -> None:
    x = _normal(4, 20)
    clean8, clean_scale = quantize_rows(x)
    broken = x.clone()
    broken[1, 3], broken[2, 5] = NAN, -INFINITY
    x8, scale = quantize_rows(broken)
    value = x8.float() * scale[:, None]
    assert value[1, 3].isnan() and value[1].isnan().sum() == 1
    assert not value[2].isfinite().all()
    for row in (0, 3):
        assert torch.equal(x8[row].float(), clean8[row].float()) and scale[row] == clean_scale[row]


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1e38])
def test_the_smallest_and_largest_rows_stay_finite(backend: str, size: float) -> None:
    x8, scale = quantize_rows(torch.full((1, 16), size, device=DEVICE))
    value = x8.float() * scale[:, None]
    assert value.isfinite().all()
    if size >= 1e-30:
        torch.testing.assert_close(value, torch.full_like(value, size), rtol=0.07, atol=0)


def test_quantised_into_a_slice_of_a_wider_buffer(backend: str) -> None:
    x = _normal(5, 32)
    wider = torch.zeros(5, 64, device=DEVICE).to(torch.float8_e4m3fn)
    x8, _ = quantize_rows(x, out=wider[:, 16:48])
    assert x8.data_ptr() == wider[:, 16:48].data_ptr()
    assert torch.equal(wider[:, 16:48].float(), quantize_rows(x)[0].float())
    assert (wider[:, :16].float() == 0).all() and (wider[:, 48:].float() == 0).all()


@pytest.mark.parametrize("columns", [1, 1792, 1793, 14336, WIDE_SCALED])
@pytest.mark.parametrize("kibibytes", [0, 64, 99, 227])
def test_rows_with_column_scales_fit_a_processor(columns: int, kibibytes: int) -> None:
    row = scaled_row(columns)
    assert columns <= row.pieces * row.columns < columns + row.columns
    assert row.warps <= RESIDENT_WARPS
    for element_size in (2, 4):
        ahead = stages_of(row, element_size, kibibytes * 1024) - 1
        programs = RESIDENT_WARPS // row.warps
        assert ahead * programs * row.pieces * row.columns * element_size <= kibibytes * 1024


def test_transpose_keeps_every_code(backend: str) -> None:
    codes = torch.arange(64 * 260, device=DEVICE).remainder(251).to(torch.uint8).view(64, 260)
    out = torch.empty(260, 96, dtype=torch.uint8, device=DEVICE)
    transposed = transpose_fp8(codes.view(torch.float8_e4m3fn), out.view(torch.float8_e4m3fn)[:, 16:80])
    assert torch.equal(transposed.view(torch.uint8), codes.t())
    assert torch.equal(out[:, 16:80], codes.t())


def test_forward_and_gradient_products_are_near_the_exact_ones(backend: str) -> None:
    T, K, N = 48, 64, 80
    x, w, dy = _normal(T, K), _normal(N, K) * torch.logspace(-2, 2, N, device=DEVICE)[:, None], _normal(T, N)
    (x8, scale_T), (w8, scale_N) = quantize_rows(x), quantize_rows(w)
    y = fp8_matmul(x8, scale_T, w8, scale_N, dtype=torch.float32)
    assert relative_error(y, x.double() @ w.double().t()) < 0.05
    dy8, scale_T = quantize_rows(dy, column_scale_K=scale_N)
    dx = fp8_matmul(dy8, scale_T, transpose_fp8(w8), None, dtype=torch.float32)
    assert relative_error(dx, dy.double() @ w.double()) < 0.05
    out = torch.empty(T, K, dtype=torch.bfloat16, device=DEVICE)
    assert fp8_matmul(dy8, scale_T, transpose_fp8(w8), None, out=out) is out
    assert relative_error(out, dx) < 4e-3


def test_shapes_that_do_not_fit_are_refused(backend: str) -> None:
    (x8, scale_T), (w8, scale_N) = quantize_rows(_normal(3, 32)), quantize_rows(_normal(5, 48))
    with pytest.raises(ValueError, match="do not fit"):
        fp8_matmul(x8, scale_T, w8, scale_N)
