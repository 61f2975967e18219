"""What decoding's kernels promise beyond their specs: places not in use, views, and what they do not take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from whet.kernels.ahead_of_time import SHARED_MEMORY
from whet.kernels.attention import attention_forward
from whet.kernels.attention_choice import nvidia_capability, starts_early
from whet.kernels.backend import forced, interpreting
from whet.kernels.decode_attention import LEAST_PART, SPEC, decode_attention, part_count, reference, tile
from whet.kernels.decode_linear import ScaledWeight, decode_linear, takes
from whet.kernels.nf4_format import quantize_nf4
from whet.kernels.spec import relative_error

BACKENDS = ["reference", *(["triton"] if interpreting() else [])]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"window": 9}, {"softcap": 2.0, "scale": 0.3}], ids=str)
def test_the_last_token_of_each_document_sees_what_it_sees_in_the_packed_row(
    backend: str, options: dict[str, Any]
) -> None:
    lengths, heads, groups, size = (40, 1, 17), 4, 2, 16
    qkv = normal(sum(lengths), heads + 2 * groups, size)
    offsets = torch.tensor((0, *lengths)).cumsum(0).int()
    q, k, v = qkv.split((heads, groups, groups), dim=1)
    whole, _, _ = attention_forward(q, k, v, offsets, max(lengths), **options)
    cache = torch.full((len(lengths), 50, 2 * groups, size), float("nan"))  # must not be read where unused
    for row, length in enumerate(lengths):
        cache[row, :length] = qkv[offsets[row] : offsets[row + 1], heads:]
    last = offsets[1:].long() - 1
    out = normal(3, heads * size + 8)
    view = out[:, : heads * size].unflatten(1, (heads, size))
    behind = out[:, heads * size :].clone()
    with forced(backend):
        found = decode_attention(qkv[last, :heads], cache, torch.tensor(lengths), out_BHE=view, **options)
    assert found is view
    assert relative_error(view, whole[last]) < 1e-5
    assert torch.equal(out[:, heads * size :], behind)


def test_parts_fill_the_device_but_are_not_too_short() -> None:
    device = torch.device("cpu")
    assert part_count(50, 1, device, 2) == 1
    assert part_count(3 * LEAST_PART, 1, device, 2) == 3
    assert part_count(10**6, 10**6, device, 2) == 1


def test_parts_on_an_h200_are_one_wave_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.kernels.rows._processors", lambda device: 132)
    device, heads_of_128 = torch.device("cuda"), tile(256, (9, 0))
    assert heads_of_128 == (64, 4, 3, 3)
    assert part_count(4096, 8 * 8, device, heads_of_128.resident) == 6
    assert part_count(4096, 1 * 8, device, heads_of_128.resident) == 32
    assert part_count(4096, 100 * 8, device, heads_of_128.resident) == 1


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (12, 0)])
def test_a_processor_has_memory_for_the_programs_it_is_to_hold(capability: tuple[int, int]) -> None:
    kilobytes = SHARED_MEMORY[10 * capability[0] + capability[1]]
    for key_bytes in (32, 64, 128, 256, 512, 1024):
        block, _, stages, resident = tile(key_bytes, capability)
        assert block & (block - 1) == 0 and block >= 16
        assert resident * (stages - 1) * 2 * block * key_bytes <= kilobytes * 1024


def test_what_starts_early_is_a_gpu_that_can() -> None:
    assert nvidia_capability(torch.device("cpu")) is None and not starts_early(torch.device("cpu"))
    for compilation in SPEC.compilations:
        early = compilation.constants["EARLY"]
        assert compilation.least_capability >= 90 if early else compilation.most_capability < 90


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 5, 130])
@pytest.mark.parametrize("length", [1, 40, 64, 399])
@pytest.mark.parametrize("size", [16, 24])
def test_places_out_of_use_are_nothing_to_parts_full_short_and_empty(
    backend: str, window: int | None, length: int, size: int
) -> None:
    """One reader has up to three parts, of which a short row leaves some without a key."""
    q, cache = normal(1, 3, size), torch.full((1, 400, 2, size), float("nan"))
    first = max(0, length - window) if window else 0
    cache[:, first:length] = normal(1, length - first, 2, size, seed=1)
    for lengths in (torch.tensor([length]), torch.tensor([length], dtype=torch.int32)):
        with forced(backend):
            found = decode_attention(q, cache, lengths, window=window)
        used = cache[:, first:length]
        wanted = reference(q.double(), used.double(), torch.tensor([length - first]))
        assert relative_error(found, wanted) < 1e-5


def test_heads_that_do_not_divide_are_named() -> None:
    with pytest.raises(ValueError, match="3 query heads cannot share 2"):
        decode_attention(normal(1, 3, 16), normal(1, 8, 4, 16), torch.tensor([4]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_a_wider_output_are_written_where_they_belong(backend: str) -> None:
    """Quantised layers of one input are multiplied in turn, into views of one buffer; the first fills t."""
    x, a = normal(1, 64), normal(8, 64, seed=1)
    t = torch.full((1, 11), float("nan"))[:, :8]
    weights = [quantize_nf4(normal(size, 64, seed=size)) for size in (5, 12)]
    sb, out = normal(17, 8, seed=3), torch.zeros(1, 20)
    with forced(backend):
        for weight, part, first in zip(weights, (slice(0, 5), slice(5, 17)), (a, None), strict=True):
            decode_linear(x, weight, a_RK=first, sb_NR=sb[part], t_BR=t, out_BN=out[:, part])
        whole = [decode_linear(x, weight) for weight in weights]
    assert relative_error(t, x @ a.T) < 1e-5
    assert relative_error(out[:, :17], torch.cat(whole, 1) + t @ sb.T) < 1e-5
    assert not out[:, 17:].any()


def test_what_has_no_kernel_is_said() -> None:
    dense, int8 = normal(600, 64), ScaledWeight(torch.zeros(8, 64, dtype=torch.int8), torch.ones(8))
    assert takes(dense, 1) and takes(int8, 1) and not takes(dense, 2) and not takes(int8, 2)
    assert takes(dense[:8], 16) and not takes(dense[:8], 17), "few outputs"
    nf4 = quantize_nf4(normal(8, 64))
    assert takes(nf4, 1) and takes(nf4, 16) and not takes(nf4, 17)
    assert not takes(quantize_nf4(normal(8, 40)), 1), "blocks that go across rows"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("odd", [1e4, float("inf"), float("nan")])
def test_a_number_far_from_its_neighbours_is_seen_in_its_row_alone(backend: str, odd: float) -> None:
    x, weight = normal(2, 192).bfloat16(), quantize_nf4(normal(24, 192, seed=1))
    with forced(backend):
        usual = decode_linear(x, weight)
        x[0, 70] = odd
        found = decode_linear(x, weight)
    assert torch.equal(found[1], usual[1])
    if odd == 1e4:
        assert relative_error(found[0], decode_linear(x, weight)[0]) < 1e-2
    else:
        assert not found[0].isfinite().any()
