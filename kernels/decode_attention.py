"""Attention of one new token a row over that row's cached keys and values.

    o = softmax(scale q k^T) v        over the keys of the last `window` places, the new token's own included

A row's keys are cut into parts that different programs read, since rows times heads alone would leave most of
a GPU idle; each part gives its own softmax-weighted sum and its log-sum-exp, and a second kernel adds them up
(Dao et al. 2023, Flash-Decoding). Lengths lie on the device and sizes are fixed, so a CUDA graph of a step
serves all steps. The cache is read once, so bandwidth decides: programs that all run at once have tens of
kilobytes each on their way.

Legend: B rows, H query heads, G key/value heads, M = H / G, E head size, P places of the cache, S parts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .attention_choice import Capability, nvidia_capability, starts_early
from .attention_reference import AttentionOptions
from .attention_triton_kernels import LOG2E
from .backend import interpreting, uses_triton
from .rows import accumulation_type, resident_programs
from .spec import Case, Compilation, Inputs, KernelSpec

LEAST_PART = 128
"""Keys a part has at least, where there are so many."""
MOST_PARTS = 64
_ALL = 1 << 30  # a window that sees everything


class Tile(NamedTuple):
    """Keys a step, warps, steps that are read or computed at once, programs that a processor holds."""

    block: int
    warps: int
    stages: int
    resident: int


def tile(key_bytes: int, capability: Capability) -> Tile:
    """The tile for keys of so many bytes, those of columns up to a power of two.

    Of three stages two lie in shared memory: 64 KiB of keys and values where a processor has 164 KiB or more,
    as found by trying on an H200, and half of that where it has 100.
    """
    if capability is None or capability < (8, 0):  # which copy to shared memory through registers
        return Tile(max(16, min(64, 8192 // key_bytes)), 4, 2, 2)
    largest = (9, 0) <= capability < (12, 0)
    wanted = 16384 if largest or capability in ((8, 0), (8, 7)) else 8192
    block = max(16, min(128, wanted // key_bytes))
    stages = 3 if block * key_bytes <= wanted else 2
    return Tile(block, 4, stages, 3 if largest and key_bytes <= 512 else 2)


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (1.0 + tl.exp2(x * (2.0 * LOG2E)))


# Where EARLY, a kernel may start while the one before it runs, but touches memory only when that has ended
# and written. Nothing is overtaken: sum_kernel waits for all of part_kernel, which waited for all before it.


@triton.jit(do_not_specialize=["window", "parts"])
def part_kernel(
    q, kv, lengths, partial, lse, q_row, q_head, kv_row, kv_place, scale, inner, window, parts,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, MEMBERS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr, CAPPED: tl.constexpr, EARLY: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """All query heads of one key/value head over one part of its keys.

    Scores, q·k or where CAPPED tanh(``inner`` q·k), are in units of log2 once they are times ``scale``.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
    row, group, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row).to(tl.int32)
    first = tl.maximum(length - window, 0)
    size = tl.cdiv(tl.cdiv(length - first, parts), BLOCK) * BLOCK
    start = first + part * size
    stop = tl.minimum(start + size, length)
    member, column = tl.arange(0, MEMBERS), tl.arange(0, COLUMNS)
    head = group * (H // G) + member
    inside = (column < E)[None, :]
    mine = (member < H // G)[:, None] & inside
    q_at = q + row.to(tl.int64) * q_row + head[:, None] * q_head + column[None, :]
    queries = tl.load(q_at, mine, other=0.0)
    if CAST:
        queries = queries.to(tl.float32)
    accumulator = tl.zeros([MEMBERS, COLUMNS], tl.float32)
    maximum = tl.full([MEMBERS], float("-inf"), tl.float32)
    total = tl.zeros([MEMBERS], tl.float32)
    k_at = kv + row.to(tl.int64) * kv_row + group * E + column[None, :]
    for begin in tl.range(start, stop, BLOCK, num_stages=STAGES):
        key = begin + tl.arange(0, BLOCK)
        place = tl.minimum(key, stop - 1)  # beyond the part its last key again, without weight
        at = k_at + place.to(tl.int64)[:, None] * kv_place
        keys = tl.load(at, inside, other=0.0)
        values = tl.load(at + G * E, inside, other=0.0)
        if CAST:
            keys, values = keys.to(tl.float32), values.to(tl.float32)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        if CAPPED:
            scores = _tanh(scores * inner)
        scores = tl.where((key < stop)[None, :], scores, float("-inf"))
        higher = tl.maximum(maximum, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - higher[:, None])
        shrink = tl.exp2(maximum - higher)
        total = total * shrink + tl.sum(weights, 1)
        maximum = higher
        accumulator = accumulator * shrink[:, None]
        accumulator = tl.dot(weights.to(values.dtype), values, accumulator, input_precision="ieee")
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    into = (row * H + head) * parts + part
    into_at = partial + into.to(tl.int64)[:, None] * E + column[None, :]
    total = tl.where(maximum > float("-inf"), total, 1.0)  # a part without keys: its maximum says so
    tl.store(into_at, accumulator / total[:, None], mine)
    tl.store(lse + into, maximum + tl.log2(total), member < H // G)


@triton.jit(do_not_specialize=["parts"])
def sum_kernel(
    partial, lse, out, out_row, out_head, parts,
    H: tl.constexpr, E: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One head's parts, each weighted by what it holds of the softmax's sum."""
    row, head = tl.program_id(0), tl.program_id(1)
    part, column = tl.arange(0, PADDED), tl.arange(0, COLUMNS)
    at = (row * H + head) * parts + part
    there = (part < parts)[:, None] & (column < E)[None, :]
    if EARLY:
        tl.extra.cuda.gdc_wait()
    sums = tl.load(lse + at, part < parts, other=float("-inf"))
    values = tl.load(partial + at.to(tl.int64)[:, None] * E + column[None, :], there, other=0.0)
    weights = tl.exp2(sums - tl.max(sums, 0))
    o = tl.sum(values * weights[:, None], 0) / tl.sum(weights, 0)
    out_at = out + row.to(tl.int64) * out_row + head * out_head + column
    tl.store(out_at, o.to(out.dtype.element_ty), column < E)


def decode_attention(
    q_BHE: torch.Tensor,
    kv_BPCE: torch.Tensor,
    lengths_B: torch.Tensor,
    *,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    out_BHE: torch.Tensor | None = None,
) -> torch.Tensor:
    """One query a row over the row's first ``lengths_B`` places. No gradient, no host synchronisation.

    Args:
        q_BHE: fp32, bf16 or fp16; any row and head stride.
        kv_BPCE: (B, P, 2G, E), at each place the G keys and then the G values, each place contiguous.
        lengths_B: int32 or int64, at least 1: places in use, that of the query's own token the last.
        window: places a query sees at most, its own included. None: all before it.
        softcap: scores become ``softcap * tanh(scores / softcap)``. None: unchanged.
        scale: factor of q·k; None: E ** -0.5.
        out_BHE: where the output goes, any row and head stride.

    Returns:
        (B, H, E) in q's type.

    Raises:
        ValueError: for heads that do not divide, or a window, softcap or scale that is not positive.
    """
    options = AttentionOptions(True, window, softcap, scale)
    rows, heads, size = q_BHE.shape
    groups = kv_BPCE.shape[2] // 2
    if heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key/value heads")
    if out_BHE is None:
        out_BHE = torch.empty((rows, heads, size), dtype=q_BHE.dtype, device=q_BHE.device)
    if not uses_triton(q_BHE) or not q_BHE.numel():
        found = reference(q_BHE, kv_BPCE, lengths_B, window=window, softcap=softcap, scale=scale)
        return out_BHE.copy_(found)
    places, device = kv_BPCE.shape[1], q_BHE.device
    columns = max(16, triton.next_power_of_2(size))
    block, warps, stages, resident = tile(columns * kv_BPCE.element_size(), nvidia_capability(device))
    parts = part_count(min(places, window or places), rows * groups, device, resident)
    partial = torch.empty((rows, heads, parts, size), dtype=torch.float32, device=device)
    lse = torch.empty((rows, heads, parts), dtype=torch.float32, device=device)
    q_BHE = q_BHE if q_BHE.stride(2) == 1 else q_BHE.contiguous()
    scale, early = options.factor(size), starts_early(device)
    launch = {"launch_pdl": True} if early else {}
    part_kernel[(rows, groups, parts)](
        q_BHE, kv_BPCE, lengths_B, partial, lse,
        q_BHE.stride(0), q_BHE.stride(1), kv_BPCE.stride(0), kv_BPCE.stride(1),
        (softcap or scale) * LOG2E.value, scale / (softcap or 1.0), window or _ALL, parts,
        H=heads, G=groups, E=size, MEMBERS=max(16, triton.next_power_of_2(heads // groups)), COLUMNS=columns,
        BLOCK=block, STAGES=stages, CAPPED=softcap is not None, EARLY=early, CAST=interpreting(),
        num_warps=warps, **launch,
    )  # fmt: skip
    padded = triton.next_power_of_2(parts)
    sum_kernel[(rows, heads)](
        partial, lse, out_BHE, out_BHE.stride(0), out_BHE.stride(1), parts,
        H=heads, E=size, PADDED=padded, COLUMNS=columns, EARLY=early, num_warps=_sum_warps(padded), **launch,
    )  # fmt: skip
    return out_BHE


def part_count(places: int, readers: int, device: torch.device, resident: int) -> int:
    """Parts that the keys are cut into, so that ``readers`` (rows times key heads) fill the GPU.

    Being equally long, they are to run all at once, ``resident`` on each processor.
    """
    most = resident_programs(device, resident) // readers
    return max(1, min(most, triton.cdiv(places, LEAST_PART), MOST_PARTS))


def _sum_warps(padded: int) -> int:
    return 2 if padded <= 32 else 4


def reference(
    q_BHE: torch.Tensor,
    kv_BPCE: torch.Tensor,
    lengths_B: torch.Tensor,
    *,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """As :func:`decode_attention`, in plain torch: over all places, under a mask."""
    rows, heads, size = q_BHE.shape
    groups, wide = kv_BPCE.shape[2] // 2, accumulation_type(q_BHE.dtype)
    k_BGPE, v_BGPE = kv_BPCE.transpose(1, 2).to(wide).chunk(2, dim=1)
    q_BGME = q_BHE.to(wide).reshape(rows, groups, heads // groups, size)
    scores_BGMP = (q_BGME @ k_BGPE.mT) * AttentionOptions(scale=scale).factor(size)
    if softcap is not None:
        scores_BGMP = softcap * torch.tanh(scores_BGMP / softcap)
    place_P = torch.arange(kv_BPCE.shape[1], device=q_BHE.device)
    seen_BP = place_P < lengths_B[:, None]
    if window is not None:
        seen_BP &= place_P >= lengths_B[:, None] - window
    scores_BGMP = scores_BGMP.masked_fill(~seen_BP[:, None, None], float("-inf"))
    # Places that are not in use may hold anything; a weight of zero does not make up for that.
    v_BGPE = v_BGPE.masked_fill(~seen_BP[:, None, :, None], 0.0)
    return (torch.softmax(scores_BGMP, dim=-1) @ v_BGPE).reshape(q_BHE.shape).to(q_BHE.dtype)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    sizes = dict(case.sizes)
    lengths, places = sizes.pop("lengths"), sizes.pop("places")
    heads, groups, size = (sizes.pop(name) for name in ("heads", "kv_heads", "head_size"))
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    return {
        "q_BHE": normal(len(lengths), heads + 2 * groups, size)[:, :heads],
        "kv_BPCE": normal(len(lengths), places, 2 * groups, size),
        "lengths_B": torch.tensor(lengths, dtype=torch.int64, device=device),
        **sizes,
    }


def _traffic(inputs: Inputs) -> int:
    """The places in use, read once; queries and outputs."""
    window = inputs.get("window") or _ALL
    places = int(inputs["lengths_B"].clamp(max=window).sum())
    kv, q = inputs["kv_BPCE"], inputs["q_BHE"]
    return places * kv.shape[2] * kv.shape[3] * kv.element_size() + 2 * q.numel() * q.element_size()


def _compilation(members: int, size: int, capped: bool, least: int, most: int) -> Compilation:
    columns = triton.next_power_of_2(size)
    block, warps, stages, _ = tile(2 * columns, divmod(least, 10))
    constants: dict[str, Any] = {
        "H": 8 * members, "G": 8, "E": size, "MEMBERS": 16, "COLUMNS": columns, "BLOCK": block,
        "STAGES": stages, "CAPPED": capped, "EARLY": least >= 90, "CAST": False,
    }  # fmt: skip
    signature = {
        "q": "*T", "kv": "*T", "lengths": "*i64", "partial": "*fp32", "lse": "*fp32",
        **dict.fromkeys(("q_row", "q_head", "kv_row", "kv_place", "window", "parts"), "i32"),
        "scale": "fp32", "inner": "fp32", **dict.fromkeys(constants, "constexpr"),
    }  # fmt: skip
    return Compilation(
        part_kernel, signature, constants, num_warps=warps, least_capability=least, most_capability=most
    )


def _sum_compilation(padded: int, least: int, most: int) -> Compilation:
    constants: dict[str, Any] = {"H": 32, "E": 128, "PADDED": padded, "COLUMNS": 128, "EARLY": least >= 90}
    signature = {
        "partial": "*fp32", "lse": "*fp32", "out": "*T", "out_row": "i32", "out_head": "i32", "parts": "i32",
        **dict.fromkeys(constants, "constexpr"),
    }  # fmt: skip
    return Compilation(
        sum_kernel, signature, constants, num_warps=_sum_warps(padded), least_capability=least,
        most_capability=most,
    )  # fmt: skip


_GENERATIONS = ((75, 75), (80, 80), (86, 89), (90, 119), (120, 120))
"""Capabilities x 10 from and up to which one compilation stands for what a launch takes."""
_SMALL = {"heads": 4, "kv_heads": 2, "head_size": 16, "places": 300}
_8B = {"heads": 32, "kv_heads": 8, "head_size": 128, "places": 4096}

SPEC = KernelSpec(
    name="decode_attention",
    operation=decode_attention,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("odd", {**_SMALL, "lengths": (1, 300, 77)}),
        Case("window", {**_SMALL, "lengths": (5, 290), "window": 140}),
        Case("softcap", {**_SMALL, "lengths": (33, 64), "softcap": 2.0, "scale": 0.4}),
        Case("head_24", {**_SMALL, "lengths": (19, 200), "head_size": 24, "heads": 3, "kv_heads": 1}),
        Case("parts", {**_SMALL, "lengths": (290,), "heads": 3, "kv_heads": 1}),
        Case("no_rows", {**_SMALL, "lengths": ()}),
    ),
    timed=(
        Case("8b", {**_8B, "lengths": (4096,) * 8}),
        Case("0.6b", {**_8B, "heads": 16, "lengths": (4096,) * 8}),
        Case("8b_one_row", {**_8B, "lengths": (4096,)}),
    ),
    tolerance={torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    traffic=_traffic,
    compilations=(
        *(
            _compilation(*sizes, *generation)
            for sizes in ((4, 128, False), (2, 64, False), (2, 256, True))
            for generation in _GENERATIONS
        ),
        *(_sum_compilation(*sizes) for sizes in ((32, 75, 89), (8, 90, 120), (64, 90, 120))),
    ),
)
