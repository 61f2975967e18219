"""FP8 (e4m3) matrices with one fp32 scale a row, and their product.

    scale = max|row| / 448        x ≈ x8 · scale

448 is e4m3's largest number; the format is Micikevicius et al., 2022 (arXiv:2209.05433). In x @ W.T the
scales of x's and W's rows multiply each output once and stay out of the sum. In the gradient dy @ W the sum
runs over W's rows: their scales are folded into dy before it is quantised (``column_scale_K``), and W is only
transposed.

A row of zeros has scale 1. A NaN or an infinity stays visible in its own row and leaves the other rows alone.

Legend: T rows, K columns, N output features.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton

from .attention_choice import nvidia_capability
from .backend import uses_triton
from .fp8_triton import (
    COMPILATIONS,
    E4M3_MAX,
    LEAST_SCALE,
    RESIDENT_WARPS,
    TILE,
    WIDE,
    WIDE_BLOCK,
    WIDE_SCALED,
    WIDE_WARPS,
    quantize_columns_kernel,
    quantize_kernel,
    quantize_wide_kernel,
    scaled_row,
    stages_of,
    transpose_kernel,
)
from .rows import accumulation_type, addressable, output, resident_programs, row_tile
from .spec import Case, Inputs, KernelSpec, bytes_of


@lru_cache(maxsize=16)
def converts_natively(device: torch.device) -> bool:
    """Whether the hardware converts to e4m3 (NVIDIA's from 8.9 on); elsewhere kernels do it in integers."""
    capability = nvidia_capability(device)
    return capability is not None and capability >= (8, 9)


@lru_cache(maxsize=16)
def shared_memory(device: torch.device) -> int:
    """Bytes that a program can have; none on the CPU, where only tests come."""
    if device.type != "cuda":
        return 0
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    return int(properties["max_shared_mem"])


def quantize_rows(
    x_TK: torch.Tensor, *, column_scale_K: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each row to e4m3 with its own scale.

    Args:
        x_TK: fp32, bf16 or fp16, row-strided or not.
        column_scale_K: multiplies the columns first, in fp32; the result stands for ``x * column_scale``.
        out: where x8 goes, (T, K) float8_e4m3fn, row-strided or not.

    Returns:
        x8_TK float8_e4m3fn; scale_T fp32 with x ≈ x8 · scale.

    Raises:
        ValueError: for an output of the wrong shape.
    """
    x8_TK = output(out, x_TK, torch.float8_e4m3fn)
    if not uses_triton(x_TK) or x_TK.numel() == 0:
        values_TK, scale_T = quantize_reference(x_TK, column_scale_K=column_scale_K)
        return x8_TK.copy_(values_TK), scale_T
    scale_T = torch.empty(len(x_TK), dtype=torch.float32, device=x_TK.device)
    column_scale_K = None if column_scale_K is None else column_scale_K.contiguous()
    _launch(addressable(x_TK), column_scale_K, x8_TK, scale_T)
    return x8_TK, scale_T


def _launch(
    x_TK: torch.Tensor, column_scale_K: torch.Tensor | None, x8_TK: torch.Tensor, scale_T: torch.Tensor
) -> None:
    (T, K), native = x_TK.shape, converts_natively(x_TK.device)
    results, strides = (x8_TK.view(torch.uint8), scale_T), (x_TK.stride(0), x8_TK.stride(0))
    widest = WIDE if column_scale_K is None else WIDE_SCALED
    if widest < K:
        quantize_wide_kernel[(T,)](
            x_TK, column_scale_K, *results, *strides, K, WIDE_BLOCK, native, num_warps=WIDE_WARPS
        )
    elif column_scale_K is None:
        tile = row_tile(K)
        quantize_kernel[(triton.cdiv(T, tile.rows),)](
            x_TK, *results, *strides, T, K, tile.rows, tile.columns, native, num_warps=tile.warps
        )
    else:
        row = scaled_row(K)
        programs = min(T, resident_programs(x_TK.device, RESIDENT_WARPS // row.warps))
        stages = stages_of(row, x_TK.element_size(), shared_memory(x_TK.device))
        quantize_columns_kernel[(programs,)](
            x_TK, column_scale_K, *results, *strides, T, K, programs,
            row.pieces, row.columns, stages, native, num_warps=row.warps,
        )  # fmt: skip


def quantize_reference(
    x_TK: torch.Tensor, *, column_scale_K: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`quantize_rows` in plain torch."""
    wide = accumulation_type(x_TK.dtype)
    x_TK = x_TK.to(wide)
    if column_scale_K is not None:
        x_TK = x_TK * column_scale_K.to(wide)
    # Not nan_to_num, which would also make infinities finite.
    size_TK = torch.where(x_TK.isnan(), 0.0, x_TK.abs())
    largest_T = size_TK.amax(1) if x_TK.shape[1] else size_TK.new_zeros(x_TK.shape[0])
    scale_T = torch.where(largest_T > 0, (largest_T / E4M3_MAX).clamp_min(LEAST_SCALE), 1.0)
    x8_TK = (x_TK * (1 / scale_T)[:, None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return x8_TK, scale_T.float()


def dequantize_rows(
    x8_TK: torch.Tensor,
    scale_T: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """x8 · scale as a dense matrix, rounded once. Plain torch: for products outside of the FP8 units.

    Args:
        x8_TK: float8_e4m3fn, row-strided or not.
        scale_T: fp32, of its rows.
        out: where to write, (T, K) of any row stride; its dtype is the result's.
        dtype: fp32, bf16 or fp16, when ``out`` is not given.
    """
    dtype = dtype if out is None else out.dtype
    if out is None:
        out = torch.empty(x8_TK.shape, dtype=dtype, device=x8_TK.device)
    return torch.mul(x8_TK.to(dtype), scale_T[:, None], out=out)  # e4m3 is exact in all of them


def transpose_fp8(w8_NK: torch.Tensor, out_KN: torch.Tensor | None = None) -> torch.Tensor:
    """The transpose of an 8-bit matrix, rewritten so that its rows are contiguous.

    Args:
        w8_NK: float8_e4m3fn (or any type of one byte). The kernel needs N, K and the row stride to be
            multiples of 4; other matrices are copied by torch.
        out_KN: where to write, (K, N) of the same type; other memory than ``w8_NK``'s.

    Raises:
        ValueError: if ``out_KN`` has another shape, or its rows are not contiguous.
    """
    N, K = w8_NK.shape
    out_KN = output(out_KN, w8_NK.t())
    starts = w8_NK.storage_offset(), out_KN.storage_offset()
    in_words = not any(size % 4 for size in (N, K, w8_NK.stride(0), out_KN.stride(0), *starts))
    if not uses_triton(w8_NK) or not in_words or w8_NK.stride(1) != 1 or w8_NK.numel() == 0:
        return out_KN.copy_(w8_NK.t())
    words, transposed = w8_NK.view(torch.int32), out_KN.view(torch.int32)
    grid = (triton.cdiv(N // 4, TILE), triton.cdiv(K // 4, TILE))
    transpose_kernel[grid](words, transposed, words.stride(0), transposed.stride(0), N, K, TILE, num_warps=4)
    return out_KN


def fp8_matmul(
    x8_TK: torch.Tensor,
    scale_T: torch.Tensor,
    w8_NK: torch.Tensor,
    scale_N: torch.Tensor | None,
    *,
    out: torch.Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    use_fast_accum: bool = False,
) -> torch.Tensor:
    """(x8 · scale) @ (w8 · scale).T on the FP8 units, where there are any (capability 8.9 and up).

    Args:
        x8_TK: float8_e4m3fn, row-strided or not.
        scale_T: fp32, of ``x8_TK``'s rows.
        w8_NK: float8_e4m3fn, contiguous.
        scale_N: fp32, of ``w8_NK``'s rows; None for 1, which costs a launch that fills a vector.
        out: where to write, (T, N); a contiguous bf16 matrix is written directly, others by a copy.
        dtype: of the result, unless ``out`` says. The units write bf16 whatever ``dtype``, whose rounding is
            below the 3-bit mantissas' own.
        use_fast_accum: sum with fewer bits, about a tenth faster on Hopper.

    Without FP8 units, and for K or N that is no multiple of 16, the reference runs.

    Raises:
        ValueError: if the shapes do not fit.
    """
    (T, K), N = x8_TK.shape, w8_NK.shape[0]
    if w8_NK.shape[1] != K or (out is not None and out.shape != (T, N)):
        shapes = [tuple(t.shape) for t in (x8_TK, w8_NK, out) if t is not None]
        raise ValueError(f"shapes {shapes} do not fit (T, K), (N, K), out (T, N)")
    has_units = uses_triton(x8_TK) and converts_natively(x8_TK.device)
    if not has_units or K % 16 or N % 16 or T * N * K == 0:
        y_TN = matmul_reference(x8_TK, scale_T, w8_NK, scale_N, dtype=dtype if out is None else out.dtype)
        return y_TN if out is None else out.copy_(y_TN)
    if scale_N is None:
        scale_N = torch.ones(N, dtype=torch.float32, device=x8_TK.device)
    direct = out is not None and out.dtype == torch.bfloat16 and out.is_contiguous()
    y_TN = torch._scaled_mm(
        x8_TK, w8_NK.t(), scale_T[:, None], scale_N[None, :],
        out_dtype=torch.bfloat16, use_fast_accum=use_fast_accum, out=out if direct else None,
    )  # fmt: skip
    if out is None:
        return y_TN.to(dtype)
    return out if direct else out.copy_(y_TN)


def matmul_reference(
    x8_TK: torch.Tensor,
    scale_T: torch.Tensor,
    w8_NK: torch.Tensor,
    scale_N: torch.Tensor | None,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """:func:`fp8_matmul` in plain torch; float64 throughout where the scales are."""
    wide = scale_T.dtype
    y_TN = (x8_TK.to(wide) @ w8_NK.to(wide).t()) * scale_T[:, None]
    if scale_N is not None:
        y_TN = y_TN * scale_N
    return y_TN.to(wide if wide == torch.float64 else dtype)


def _normal(shape: tuple[int, ...], device: torch.device, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def _quantize_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    T, K = case.sizes["T"], case.sizes["K"]
    wider_TK = _normal((T, K + case.sizes.get("padding", 0)), device, seed).to(dtype)
    if "largest" in case.sizes:
        wider_TK[:, 0] = case.sizes["largest"]
    inputs: Inputs = {"x_TK": wider_TK[:, :K]}
    if case.sizes.get("column_scale"):
        inputs["column_scale_K"] = _normal((K,), device, seed + 1).abs()
    return inputs


def _random_fp8(shape: tuple[int, ...], device: torch.device, seed: int) -> torch.Tensor:
    return (64 * _normal(shape, device, seed)).to(torch.float8_e4m3fn)


def _transpose_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    N, K = case.sizes["N"], case.sizes["K"]
    return {"w8_NK": _random_fp8((N, K + case.sizes.get("padding", 0)), device, seed)[:, :K]}


def _matmul_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    T, K, N = case.sizes["T"], case.sizes["K"], case.sizes["N"]
    return {
        "x8_TK": _random_fp8((T, K), device, seed),
        "scale_T": _normal((T,), device, seed + 1).abs() / 64,
        "w8_NK": _random_fp8((N, K), device, seed + 2),
        "scale_N": _normal((N,), device, seed + 3).abs() / 64 if case.sizes.get("scaled", True) else None,
        "dtype": dtype,
    }


def _quantize_traffic(inputs: Inputs) -> int:
    x_TK = inputs["x_TK"]
    return bytes_of(x_TK, inputs.get("column_scale_K")) + x_TK.numel() + 4 * x_TK.shape[0]


def _matmul_traffic(inputs: Inputs) -> int:
    T, N = inputs["x8_TK"].shape[0], inputs["w8_NK"].shape[0]
    return bytes_of(inputs["x8_TK"], inputs["w8_NK"]) + T * N * inputs["dtype"].itemsize


def _matmul_flops(inputs: Inputs) -> int:
    return 2 * inputs["x8_TK"].numel() * inputs["w8_NK"].shape[0]


_EXACT = dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), 1e-6)

SPEC = KernelSpec(
    name="fp8_quantize",
    operation=quantize_rows,
    reference=quantize_reference,
    inputs=_quantize_inputs,
    cases=(
        Case("plain", {"T": 4, "K": 64}),
        Case("odd", {"T": 7, "K": 37, "column_scale": True}),
        Case("strided", {"T": 5, "K": 48, "padding": 3}),
        Case("turns", {"T": 41, "K": 1500, "padding": 4, "column_scale": True}),
        Case("wide", {"T": 5, "K": 9000, "column_scale": True}),
        Case("wider", {"T": 5, "K": 16500, "column_scale": True}),
        Case("widest", {"T": 2, "K": 33000, "padding": 8, "column_scale": True}),
        # 448 / 64: a scale whose reciprocal is exact, so that no tie of so many numbers is seen as none.
        Case("widest_alone", {"T": 1, "K": 70000, "largest": 7}),
        Case("empty", {"T": 0, "K": 16}),
    ),
    timed=(
        Case("8b", {"T": 8192, "K": 14336}),
        Case("0.6b", {"T": 8192, "K": 1024}),
        Case("8b_column_scale", {"T": 8192, "K": 4096, "column_scale": True}),
        Case("8b_wide_column_scale", {"T": 8192, "K": 28672, "column_scale": True}),
    ),
    tolerance=_EXACT,
    traffic=_quantize_traffic,
    compilations=COMPILATIONS[:-1],
    notes="Exact but for the few values in a million that fp32 rounds to a tie between two e4m3 numbers.",
)

TRANSPOSE_SPEC = KernelSpec(
    name="fp8_transpose",
    operation=transpose_fp8,
    reference=lambda w8_NK: w8_NK.t().contiguous(),
    inputs=_transpose_inputs,
    cases=(
        Case("plain", {"N": 256, "K": 128}),
        Case("edges", {"N": 140, "K": 36}),
        Case("strided", {"N": 8, "K": 132, "padding": 4}),
        Case("bytes", {"N": 7, "K": 13}),
        Case("empty", {"N": 0, "K": 16}),
    ),
    timed=(Case("8b", {"N": 14336, "K": 4096}), Case("0.6b", {"N": 3072, "K": 1024})),
    tolerance=_EXACT,
    traffic=lambda inputs: 2 * inputs["w8_NK"].numel(),
    compilations=COMPILATIONS[-1:],
)

MATMUL_SPEC = KernelSpec(
    name="fp8_matmul",
    operation=fp8_matmul,
    reference=matmul_reference,
    inputs=_matmul_inputs,
    cases=(
        Case("plain", {"T": 5, "K": 64, "N": 48}),
        Case("unscaled", {"T": 130, "K": 32, "N": 16, "scaled": False}),
        Case("odd", {"T": 3, "K": 17, "N": 5}),
        Case("empty", {"T": 0, "K": 32, "N": 16}),
    ),
    timed=(
        Case("8b", {"T": 8192, "K": 4096, "N": 14336}),
        Case("0.6b", {"T": 8192, "K": 1024, "N": 3072}),
    ),
    # The units write bf16, whatever the result is converted to.
    tolerance={torch.float32: 4e-3, torch.bfloat16: 4e-3},
    dtypes=(torch.float32, torch.bfloat16),
    traffic=_matmul_traffic,
    flops=_matmul_flops,
)
