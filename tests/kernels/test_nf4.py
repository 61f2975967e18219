"""4-bit and int8 weights: bitsandbytes' layout and values, rows and strides, FP8 with row scales."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from whet.kernels import nf4_format
from whet.kernels.backend import interpreting
from whet.kernels.int8 import dequantize_int8
from whet.kernels.nf4 import Nf4Weight, dequantize_nf4, quantize_nf4
from whet.kernels.nf4_fp8 import dequantize_nf4_fp8
from whet.kernels.nf4_lookup import look_up_bytes, permutes_natively
from whet.kernels.spec import relative_error

bitsandbytes = pytest.importorskip("bitsandbytes.functional")

ON_GPU = torch.cuda.is_available() and not interpreting()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def weights(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    w_NK = torch.randn(rows, columns, generator=generator) * 0.02
    w_NK[rows // 2, : columns // 2] = 0  # blocks of zeros, too
    return w_NK.to(dtype)


def assert_equal(value: torch.Tensor, exact: torch.Tensor, backend: str) -> None:
    """Bit for bit; in Triton's interpreter bf16 is truncated, so one step lower is right there."""
    if backend == "triton" and interpreting() and value.dtype == torch.bfloat16:
        assert torch.allclose(value.float().cpu(), exact.float(), rtol=2**-7, atol=0)
    else:
        assert torch.equal(value.cpu(), exact)


def by_definition(weight: Nf4Weight) -> torch.Tensor:
    """Element for element, from the layout's text."""
    rows, columns = weight.shape
    out = torch.empty(rows * columns)
    for i in range(rows * columns):
        byte, block = int(weight.packed[i // 2]), i // weight.blocksize
        absmax = weight.absmax[block]
        if weight.nested_absmax is not None:
            assert weight.nested_code is not None and weight.offset is not None
            absmax = weight.nested_code[int(absmax)] * weight.nested_absmax[block // 256] + weight.offset
        out[i] = weight.code[byte & 15 if i % 2 else byte >> 4] * absmax
    return out.view(rows, columns)


# --- quantisation


@pytest.mark.parametrize("code", ["nf4", "fp4"])
@pytest.mark.parametrize("blocksize", [64, 128, 256])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(64, 128), (33, 65), (3, 30), (1, 1)])
def test_quantisation_is_bitsandbytes(
    shape: tuple[int, int], dtype: torch.dtype, blocksize: int, code: str
) -> None:
    w_NK = weights(*shape, dtype)
    data, state = bitsandbytes.quantize_4bit(w_NK, blocksize=blocksize, quant_type=code)
    ours = quantize_nf4(w_NK, blocksize, double=False, code=code)
    assert torch.equal(ours.packed, data.view(-1))
    assert torch.equal(ours.absmax, state.absmax)
    assert torch.equal(ours.code, state.code)


def test_double_quantisation_is_bitsandbytes() -> None:
    w_NK = weights(512, 512)
    single = quantize_nf4(w_NK, double=False)
    data, state = bitsandbytes.quantize_4bit(w_NK, compress_statistics=True, quant_type="nf4")
    ours, theirs = quantize_nf4(w_NK), Nf4Weight.from_bnb(state, data)
    for name in ("packed", "nested_absmax", "nested_code", "offset"):
        assert torch.equal(ours.tensors()[name], theirs.tensors()[name]), name
    # bitsandbytes on the CPU does not always find the nearest of the 256 values, we do.
    assert (ours.absmax != theirs.absmax).float().mean() < 0.01
    errors = [(w.scales(0, 4096) - single.absmax).abs() for w in (ours, theirs)]
    assert (errors[0] <= errors[1] + 1e-8).all()


def test_quantisation_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    w_NK = weights(37, 51)
    whole = quantize_nf4(w_NK)
    monkeypatch.setattr(nf4_format, "_ELEMENTS_AT_A_TIME", 512)
    parts = quantize_nf4(w_NK)
    assert all(torch.equal(tensor, parts.tensors()[name]) for name, tensor in whole.tensors().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"code": "int4"}, "unknown 4-bit code 'int4'"),
        ({"blocksize": 48}, "blocksize 48"),
        ({"w_NK": torch.zeros(2, 3, 4)}, "two dimensions"),
    ],
)
def test_quantisation_refuses(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        quantize_nf4(**{"w_NK": torch.zeros(4, 64), **change})


def test_tensors_have_to_fit_the_shape() -> None:
    weight = quantize_nf4(weights(4, 64), double=False)
    with pytest.raises(ValueError, match="128 bytes and 4 absmax values, not 127 and 4"):
        Nf4Weight(weight.packed[:-1], weight.absmax, weight.code, (4, 64))


# --- dequantisation


@pytest.mark.parametrize("code", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "blocksize"), [((64, 128), 64), ((7, 384), 128), ((9, 256), 256)])
def test_values_are_bitsandbytes(
    backend: str, shape: tuple[int, int], blocksize: int, dtype: torch.dtype, double: bool, code: str
) -> None:
    data, state = bitsandbytes.quantize_4bit(
        weights(*shape, dtype), blocksize=blocksize, compress_statistics=double, quant_type=code
    )
    weight = Nf4Weight.from_bnb(state, data).to(DEVICE)
    assert_equal(dequantize_nf4(weight, dtype=dtype), bitsandbytes.dequantize_4bit(data, state), backend)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("shape", "blocksize"), [((9, 65), 64), ((5, 40), 128), ((7, 30), 32), ((1, 1), 64)])
def test_blocks_that_cross_rows(backend: str, shape: tuple[int, int], blocksize: int, double: bool) -> None:
    weight = quantize_nf4(weights(*shape), blocksize, double)
    exact = by_definition(weight)
    assert_equal(dequantize_nf4(weight.to(DEVICE), dtype=torch.float32), exact, backend)


def test_packed_bytes_that_no_word_starts_at(backend: str) -> None:
    weight = quantize_nf4(weights(6, 64))
    shifted = torch.cat([torch.zeros(3, dtype=torch.uint8), weight.packed]).to(DEVICE)[3:]
    moved = weight.to(DEVICE)
    moved = Nf4Weight(shifted, *(getattr(moved, name) for name in list(moved.__dataclass_fields__)[1:]))
    assert_equal(dequantize_nf4(moved, dtype=torch.float32), by_definition(weight), backend)


@pytest.mark.parametrize("columns", [128, 33])
@pytest.mark.parametrize(("start", "stop"), [(0, 5), (3, 11), (10, 11), (4, 4), (0, 11)])
def test_some_rows_into_a_wider_buffer(backend: str, columns: int, start: int, stop: int) -> None:
    weight = quantize_nf4(weights(11, columns))
    exact = by_definition(weight)[start:stop]
    buffer = torch.full((stop - start, columns + 24), 7.0, device=DEVICE)
    out_NK = buffer[:, 8 : 8 + columns]
    returned = dequantize_nf4(weight.to(DEVICE), out_NK=out_NK, start=start, stop=stop)
    assert returned.data_ptr() == out_NK.data_ptr()
    assert_equal(out_NK, exact, backend)
    assert (buffer[:, :8] == 7).all() and (buffer[:, 8 + columns :] == 7).all()


def test_the_outputs_type_is_the_results(backend: str) -> None:
    weight = quantize_nf4(weights(4, 64)).to(DEVICE)
    out_NK = torch.empty(4, 64, dtype=torch.float16, device=DEVICE)
    assert dequantize_nf4(weight, out_NK=out_NK).dtype == torch.float16
    assert torch.equal(out_NK, dequantize_nf4(weight, dtype=torch.float16))


def test_dequantisation_refuses(backend: str) -> None:
    weight = quantize_nf4(weights(4, 64)).to(DEVICE)
    with pytest.raises(ValueError, match="rows 2 to 5 of a weight with 4 rows"):
        dequantize_nf4(weight, start=2, stop=5)
    with pytest.raises(ValueError, match="unit stride"):
        dequantize_nf4(weight, out_NK=torch.empty(64, 4, device=DEVICE).t())
    with pytest.raises(ValueError, match=r"needed is \(4, 64\)"):
        dequantize_nf4(weight, out_NK=torch.empty(4, 60, device=DEVICE))
    with pytest.raises(ValueError, match=r"needed is \(4, 64\)"):
        dequantize_nf4_fp8(weight, out=torch.empty(3, 64, dtype=torch.float8_e4m3fn, device=DEVICE))


def test_bitsandbytes_storage_types() -> None:
    w_NK = weights(8, 64, torch.bfloat16)
    data, state = bitsandbytes.quantize_4bit(w_NK, quant_type="nf4", quant_storage=torch.bfloat16)
    stored = Nf4Weight.from_bnb(state, data)
    assert stored.packed.data_ptr() == data.data_ptr()
    assert torch.equal(stored.packed, quantize_nf4(w_NK, double=False).packed)


# --- FP8


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("margin", [16, 3])  # rows that start at words, and rows that do not
@pytest.mark.parametrize(
    ("shape", "blocksize"), [((12, 512), 64), ((9, 192), 64), ((21, 96), 128), ((21, 48), 128), ((5, 33), 64)]
)
def test_fp8_is_the_dense_weight(
    backend: str, shape: tuple[int, int], blocksize: int, margin: int, double: bool
) -> None:
    weight = quantize_nf4(weights(*shape), blocksize, double)
    exact = by_definition(weight)
    buffer = torch.zeros(shape[0], shape[1] + margin, device=DEVICE).to(torch.float8_e4m3fn)
    w8_NK, scale_N = dequantize_nf4_fp8(weight.to(DEVICE), out=buffer[:, : shape[1]])
    assert w8_NK.data_ptr() == buffer.data_ptr() and (buffer[:, shape[1] :].float() == 0).all()
    value = w8_NK.float().cpu() * scale_N.cpu()[:, None]
    step = (
        exact.abs() * 2**-4 + scale_N.cpu()[:, None] * 2**-10
    )  # half a step, of normal and subnormal numbers
    assert ((value - exact).abs() <= step * 1.001).all()
    if shape[1] % blocksize == 0:  # no block is shared with another row, so 448 stands for the largest number
        assert torch.equal(scale_N.cpu(), exact.abs().amax(1) / 448)


def test_fp8_of_zeros(backend: str) -> None:
    weight = quantize_nf4(torch.zeros(3, 64), double=False).to(DEVICE)
    w8_NK, scale_N = dequantize_nf4_fp8(weight)
    assert (w8_NK.float() == 0).all() and (scale_N == 1).all()


@triton.jit
def _look_up(table, words, out, NATIVE: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    word = tl.load(words + at)
    t0, t1 = tl.load(table + at), tl.load(table + SIZE + at)
    t2, t3 = tl.load(table + 2 * SIZE + at), tl.load(table + 3 * SIZE + at)
    first, last = look_up_bytes(t0, t1, t2, t3, word, NATIVE)
    tl.store(out + 2 * at, first)
    tl.store(out + 2 * at + 1, last)


@pytest.mark.skipif(not (ON_GPU or interpreting()), reason="runs a kernel")
def test_tables_of_bytes() -> None:
    generator = torch.Generator().manual_seed(0)
    table_4W = torch.randint(-(2**31), 2**31, (4, 64), generator=generator).int()
    packed = torch.randint(0, 256, (64, 4), generator=generator).byte()
    out = torch.zeros(64, 2, dtype=torch.int32, device=DEVICE)
    words = packed.view(torch.int32).to(DEVICE)
    _look_up[(1,)](table_4W.to(DEVICE), words, out, permutes_natively(DEVICE), 64)
    code = torch.stack([packed >> 4, packed & 15], dim=2).view(64, 8)
    bytes_W16 = table_4W.t().contiguous().view(torch.uint8)
    assert torch.equal(out.cpu().view(torch.uint8), bytes_W16.gather(1, code.long()))


# --- int8


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(6, 256), (5, 1031), (1, 1), (0, 8)])
def test_int8_is_bitsandbytes(backend: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    w_NK = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scale_N = w_NK.abs().amax(1)
    data_NK = (w_NK * (127 / scale_N[:, None])).round().to(torch.int8)
    exact = bitsandbytes.int8_vectorwise_dequant(data_NK, scale_N)
    buffer = torch.full((shape[0], shape[1] + 5), 7.0, dtype=dtype, device=DEVICE)
    dequantize_int8(data_NK.to(DEVICE), scale_N.to(DEVICE), buffer[:, : shape[1]])
    assert_equal(buffer[:, : shape[1]], exact.to(dtype), backend)
    assert (buffer[:, shape[1] :] == 7).all()
    if shape[0]:
        assert relative_error(exact, w_NK) < 0.01


def test_int8_refuses_scales_that_do_not_fit(backend: str) -> None:
    with pytest.raises(ValueError, match="3 scales for 4 rows"):
        dequantize_int8(torch.zeros(4, 8, dtype=torch.int8), torch.ones(3))
