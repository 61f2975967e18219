"""AdamW over a flat buffer: against torch's own, grouped scalars, clipping, 8-bit states."""

from __future__ import annotations

import pytest
import torch

from whet.kernels.adamw import (
    adamw_scalars,
    adamw_step,
    adamw_update,
)
from whet.kernels.backend import forced, interpreting
from whet.kernels.dynamic_code import BLOCK, BlockState, dequantize_blocks, dynamic_code, quantize_blocks
from whet.kernels.gradient_norm import clip_coefficient, gradient_norm, norm_and_clip
from whet.kernels.spec import relative_error

BACKENDS = ["reference", *(["triton"] if interpreting() else [])]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with forced(request.param):
        yield request.param


def _moments(numel: int, bits: int) -> tuple:
    if bits == 32:
        return torch.zeros(numel), torch.zeros(numel)
    return BlockState.zeros(numel, signed=True), BlockState.zeros(numel, signed=False)


def test_follows_torch(backend: str) -> None:
    torch.manual_seed(0)
    ours = torch.randn(700)
    theirs = torch.nn.Parameter(ours.clone())
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1)
    m, v = _moments(700, 32)
    for step in range(1, 8):
        theirs.grad = torch.randn(700)
        adamw_step(
            ours, theirs.grad.clone(), m, v, lr=1e-2, beta1=0.8, beta2=0.95, weight_decay=0.1, step=step
        )
        optimizer.step()
    assert relative_error(ours, theirs) < 1e-6
    assert relative_error(v, optimizer.state[theirs]["exp_avg_sq"]) < 1e-6


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_moments_out_of_range_move_nothing_far(backend: str) -> None:
    """A second moment that overflowed, and one too small for fp32 to hold in full."""
    p, g = torch.ones(2), torch.tensor([1e25, 1e-20])
    m, v = _moments(2, 32)
    adamw_step(p, g, m, v, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-30, weight_decay=0.0, step=1)
    assert v[0] == torch.inf
    torch.testing.assert_close(p, torch.ones(2), rtol=0, atol=1.1e-3)


@pytest.mark.parametrize("bits", [32, 8])
def test_rows_clip_and_shadow(backend: str, bits: int) -> None:
    """A block with its own row moves by that row's rate; the shadow is the rounded result."""
    torch.manual_seed(1)
    p, g = torch.randn(1000), torch.randn(1000)
    table = torch.tensor([adamw_scalars(rate, 0.9, 0.999, 1e-8, 0.0, 1) for rate in (1e-2, 1e-1)])
    rows = torch.tensor([0, 1, 1, 0], dtype=torch.int32)
    shadow = torch.zeros(1000, dtype=torch.float16)
    before, (m, v) = p.clone(), _moments(1000, bits)
    adamw_update(p, g, m, v, table, rows_B=rows, clip=torch.tensor(0.5), shadow_P=shadow)
    rates = torch.tensor([1e-2, 1e-1, 1e-1, 1e-2]).repeat_interleave(BLOCK)[:1000]
    # The first step is lr times the gradient's sign, whatever its size.
    torch.testing.assert_close(p, before - rates * g.sign(), rtol=1e-5, atol=1e-6)
    assert torch.equal(shadow, p.half())
    first = m if bits == 32 else dequantize_blocks(m)
    assert relative_error(first, 0.05 * g) < (1e-6 if bits == 32 else 0.02)


def test_learning_rate_and_step_from_device_tensors(backend: str) -> None:
    g = torch.linspace(-1, 1, 300)
    host, device = torch.ones(300), torch.ones(300)
    adamw_step(host, g, *_moments(300, 32), lr=1e-2, step=1, weight_decay=0.5)
    adamw_step(device, g, *_moments(300, 32), lr=torch.tensor(1e-2), step=torch.tensor(1), weight_decay=0.5)
    torch.testing.assert_close(device, host, rtol=1e-6, atol=0)


def test_norm_and_clipping(backend: str) -> None:
    torch.manual_seed(2)
    g = torch.randn(10_001) * 3
    exact = g.double().norm()
    assert abs(float(gradient_norm(g) / exact) - 1) < 1e-6
    norm, coefficient = norm_and_clip(g, 1.0)
    assert torch.equal(norm, gradient_norm(g))
    torch.testing.assert_close(coefficient, clip_coefficient(norm, 1.0))
    parameter = torch.nn.Parameter(torch.zeros_like(g))
    parameter.grad = g.clone()
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    torch.testing.assert_close(g * coefficient, parameter.grad)
    assert float(norm_and_clip(g, 1e9)[1]) == 1.0
    assert float(gradient_norm(g[:0])) == 0.0
    assert norm_and_clip(torch.tensor([1.0, float("nan")]), 1.0)[1].isnan()


def test_codes_agree_with_the_nearest_entry(backend: str) -> None:
    """From zero states m is 0.1 g: its codes must be the nearest entries, signs and tiny numbers included."""
    torch.manual_seed(3)
    g = torch.randn(2000) * 10 ** torch.empty(2000).uniform_(-9, 0)
    p, (m, v) = torch.zeros(2000), _moments(2000, 8)
    adamw_step(p, g, m, v, lr=1e-3, step=1)
    for state, exact in ((m, 0.1 * g), (v, 1e-3 * g * g)):
        nearest = quantize_blocks(exact, signed=state.signed)
        # A number midway between two entries may go to either.
        assert (state.codes.int() - nearest.codes.int()).abs().max() <= 1
        assert (state.codes != nearest.codes).float().mean() < 0.002
        torch.testing.assert_close(state.absmax, nearest.absmax)
    assert torch.isfinite(p).all()


@pytest.mark.parametrize("signed", [True, False])
def test_codes_on_both_sides_of_every_limit(backend: str, signed: bool) -> None:
    """Every entry, and numbers just below and above where the nearest entry changes, as moments of a step."""
    code = dynamic_code(signed, torch.device("cpu"))
    limits = (code[:-1] + code[1:]) / 2
    x = torch.cat([code, limits * (1 - 1e-5), limits * (1 + 1e-5)])
    x = torch.nn.functional.pad(x, (0, -x.numel() % 255)).view(-1, 255)
    x = torch.nn.functional.pad(x, (0, 1), value=1.0).flatten()
    g = 10 * x if signed else (1000 * x).sqrt()
    m, v = _moments(x.numel(), 8)
    adamw_step(torch.zeros_like(g), g, m, v, lr=1e-3, step=1)
    expected = quantize_blocks(x, signed=signed)
    assert torch.equal((m if signed else v).codes, expected.codes)


@pytest.mark.parametrize("signed", [True, False])
def test_code_round_trip(signed: bool) -> None:
    code = dynamic_code(signed, torch.device("cpu"))
    assert code.shape == (256,) and float(code.max()) == 1.0 and bool((code.diff() > 0).all())
    state = quantize_blocks(code * 3, signed=signed)
    assert state.codes.tolist() == list(range(256))
    torch.testing.assert_close(dequantize_blocks(state), code * 3)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_a_search(signed: bool) -> None:
    """Random numbers of all magnitudes, and the fp32 numbers on and around every limit between two codes."""
    code = dynamic_code(signed, torch.device("cpu"))
    limits = (code[:-1] + code[1:]) / 2
    around = [torch.nextafter(limits, torch.tensor(way)) for way in (-2.0, 2.0)]
    random = torch.rand(5000) ** torch.randint(1, 24, (5000,))
    x = torch.cat([limits, *around, random, -random * signed, torch.zeros(3)])
    # A 1 in every block: scaling changes nothing.
    blocks = torch.nn.functional.pad(x, (0, -x.numel() % 255)).view(-1, 255)
    blocks = torch.nn.functional.pad(blocks, (0, 1), value=1.0)
    expected = torch.bucketize(blocks, limits, right=True)
    if not signed:
        expected = torch.where(blocks > 0, expected.clamp(min=1), expected)
    assert torch.equal(quantize_blocks(blocks.flatten(), signed=signed).codes.view(-1, 256).long(), expected)


def test_a_positive_second_moment_is_never_rounded_to_zero() -> None:
    state = quantize_blocks(torch.tensor([1.0, 1e-20, 0.0]), signed=False)
    assert state.codes.tolist() == [255, 1, 0]


def test_code_is_bitsandbytes_own() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    for signed in (True, False):
        assert torch.equal(dynamic_code(signed, torch.device("cpu")), functional.create_dynamic_map(signed))
