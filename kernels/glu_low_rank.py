"""Gated linear units whose inputs, or whose result's gradient, still lack a low-rank update.

    h = a(gate + t_g B_g) (up + t_u B_u)        backward, dh + dt A takes the place of dh

A product that cannot carry its LoRA update (arXiv:2106.09685) would have to be read and written once more for
it. The gated unit reads the same elements anyway and adds the update on the way: tiles of rows and columns,
the update a small matrix product in their registers. Beside the traffic of :mod:`.glu` only the factors are
read, mostly from the cache.

The updated gate, up and dh are never rounded to 16 bits, as they would be in memory: results are a little
nearer to the exact ones than those of the separate steps. h for an FP8 product goes through
:func:`.fp8.quantize_rows` afterwards: a scale needs whole rows, which tiles do not hold.

Legend: T tokens, F MLP width, R rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from .backend import interpreting, uses_triton
from .fp8 import shared_memory
from .glu import check_halves, glu_backward, glu_forward, reference_backward
from .glu import reference as plain_glu
from .glu_low_rank_triton import backward_kernel, forward_kernel
from .rows import accumulation_type, addressable, output, row_stride
from .spec import Case, Compilation, Inputs, KernelSpec, bytes_of

LowRank = tuple[torch.Tensor, torch.Tensor]
"""left (T, R) and right (R, F), views of any strides: what is to be added is left right."""

MOST_RANK = 128
_PROGRAMS = 1024  # about as many as run at once; beyond, programs take more tiles each
_STEPS = 8  # tiles; by then the right factors cost a program little
_ROOM = 96 * 1024  # bytes; Turing and AMD have 64 KiB


class Launch(NamedTuple):
    """Rows and columns of a tile, its warps, and how many tiles are on their way at a time.

    A warp that has 16 rows of :data:`.glu_low_rank_triton.LINE` columns to itself finds a product's results
    where it reads. Columns beside each other share the left factors: 128 suffice, and more rows are no help.
    """

    rows: int
    columns: int
    warps: int
    stages: int


def launch_of(rank: int, wide: bool, shared_memory: int) -> Launch:
    """The tile for padded rank and type, and for the bytes of shared memory that a program can have."""
    if wide or (rank > 64 and shared_memory < _ROOM):
        return Launch(16, 32, 4, 1)
    if rank > 32:
        return Launch(16, 64, 2, 3 if rank <= 64 else 2)
    return Launch(16, 128, 4, 3)


def padded_rank(*updates: LowRank | None) -> int:
    """The power of two, from 16 on, that holds the updates' ranks; 16 is the least that products take."""
    return max([16, *(triton.next_power_of_2(update[0].shape[1]) for update in updates if update)])


def reference(
    gate_TF: torch.Tensor,
    up_TF: torch.Tensor,
    kind: str,
    gate_update: LowRank | None = None,
    up_update: LowRank | None = None,
) -> torch.Tensor:
    """:func:`glu_low_rank_forward` in plain torch: float32 inside for 16-bit types, float64 for float64."""
    return plain_glu(summed(gate_TF, gate_update), summed(up_TF, up_update), kind).to(gate_TF.dtype)


def glu_low_rank_forward(
    gate_TF: torch.Tensor,
    up_TF: torch.Tensor,
    kind: str,
    *,
    gate_update: LowRank | None = None,
    up_update: LowRank | None = None,
    out_TF: torch.Tensor | None = None,
) -> torch.Tensor:
    """h_TF = a(gate + its update) (up + its update), rounded once; gate and up stay as they are.

    Args:
        gate_TF: rows of any stride, as of all three.
        up_TF: same shape and type.
        kind: one of :data:`.glu.KINDS`.
        gate_update: factors of gate's type; None for no update.
        up_update: likewise.
        out_TF: where h goes; may be ``gate_TF`` or ``up_TF``.

    Raises:
        ValueError: for an unknown ``kind``, shapes or types that do not fit, or a rank over
            :data:`MOST_RANK`.
    """
    _check(gate_TF, up_TF, kind, gate_update, up_update)
    if gate_update is None and up_update is None:
        return glu_forward(gate_TF, up_TF, kind, out_TF=out_TF)
    out = output(out_TF, gate_TF)
    if not gate_TF.numel():
        return out
    if not uses_triton(gate_TF):
        return out.copy_(reference(gate_TF, up_TF, kind, gate_update, up_update))
    gate, up, (rows, columns) = addressable(gate_TF), addressable(up_TF), gate_TF.shape
    rank = padded_rank(gate_update, up_update)
    launch = launch_of(rank, gate.element_size() > 2, shared_memory(gate.device))
    programs, steps = launch_grid(rows, columns, launch)
    (gate_factors, gate_numbers), (up_factors, up_numbers) = numbers_of(gate_update), numbers_of(up_update)
    forward_kernel[(programs,)](
        gate, up, out, *gate_factors, *up_factors, rows, columns, steps,
        gate.stride(0), up.stride(0), out.stride(0), *gate_numbers, *up_numbers,
        KIND=kind, RANK=rank, ROWS=launch.rows, COLUMNS=launch.columns,
        CAST=casts(gate), STAGES=launch.stages, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return out


def glu_low_rank_backward(
    dh_TF: torch.Tensor,
    gate_TF: torch.Tensor,
    up_TF: torch.Tensor,
    kind: str,
    *,
    dh_update: LowRank | None = None,
    gate_update: LowRank | None = None,
    up_update: LowRank | None = None,
    h_TF: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dgate_TF, dup_TF) of :func:`glu_low_rank_forward`, over gate and up unless ``out`` is given.

    Args:
        dh_TF: gradient of the forward result, but for ``dh_update``.
        gate_TF: the forward input, as it was; overwritten by its gradient.
        up_TF: likewise.
        kind: one of :data:`.glu.KINDS`.
        dh_update: factors dt and A of what dh still lacks.
        gate_update: as in the forward pass. The factors' own gradients are products of the results.
        up_update: likewise.
        h_TF: if given, the forward result is written there in the same pass; may be ``dh_TF``.
        out: where the gradients of gate and up go, if not over these.

    Raises:
        ValueError: as in the forward pass.
    """
    _check(gate_TF, up_TF, kind, gate_update, up_update, dh_update)
    if dh_update is None and gate_update is None and up_update is None:
        return glu_backward(dh_TF, gate_TF, up_TF, kind, h_TF=h_TF, out=out)
    dgate, dup = (output(tensor, gate_TF) for tensor in (out or (gate_TF, up_TF)))
    h = None if h_TF is None else output(h_TF, gate_TF)
    if not gate_TF.numel():
        return dgate, dup
    if not uses_triton(gate_TF):
        updated = (summed(gate_TF, gate_update), summed(up_TF, up_update))
        return reference_backward(summed(dh_TF, dh_update), *updated, kind, h, (dgate, dup))
    dh, gate, up = addressable(dh_TF), addressable(gate_TF), addressable(up_TF)
    rank, dh_rank, (rows, columns) = padded_rank(gate_update, up_update), padded_rank(dh_update), gate.shape
    launch = launch_of(max(rank, dh_rank), gate.element_size() > 2, shared_memory(gate.device))
    programs, steps = launch_grid(rows, columns, launch)
    dh_factors, dh_numbers = numbers_of(dh_update)
    (gate_factors, gate_numbers), (up_factors, up_numbers) = numbers_of(gate_update), numbers_of(up_update)
    backward_kernel[(programs,)](
        dh, gate, up, dgate, dup, h, *dh_factors, *gate_factors, *up_factors, rows, columns, steps,
        dh.stride(0), gate.stride(0), up.stride(0), dgate.stride(0), dup.stride(0), row_stride(h),
        *dh_numbers, *gate_numbers, *up_numbers,
        KIND=kind, DH_RANK=dh_rank, RANK=rank, ROWS=launch.rows, COLUMNS=launch.columns,
        CAST=casts(gate), STAGES=launch.stages, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return dgate, dup


def summed(x: torch.Tensor, update: LowRank | None) -> torch.Tensor:
    wide = accumulation_type(x.dtype)
    return x.to(wide) if update is None else torch.addmm(x.to(wide), update[0].to(wide), update[1].to(wide))


def launch_grid(rows: int, columns: int, launch: Launch, most_steps: int = _STEPS) -> tuple[int, int]:
    """Programs, and tiles each of them goes down."""
    below, beside = triton.cdiv(rows, launch.rows), triton.cdiv(columns, launch.columns)
    steps = max(1, min(most_steps, below * beside // _PROGRAMS))
    return triton.cdiv(below, steps) * beside, steps


def numbers_of(update: LowRank | None) -> tuple[tuple[torch.Tensor | None, ...], tuple[int, ...]]:
    """The factors, and the numbers that say how they lie: left's row stride, right's two strides, rank."""
    if update is None:
        return (None, None), (0, 0, 0, 0)
    left, right = addressable(update[0]), update[1]
    return (left, right), (left.stride(0), right.stride(1), right.stride(0), left.shape[1])


def casts(gate: torch.Tensor) -> bool:
    return interpreting() or gate.element_size() > 2


def _check(gate: torch.Tensor, up: torch.Tensor, kind: str, *updates: LowRank | None) -> None:
    check_halves(gate, up, kind)
    tokens, width = gate.shape
    for left, right in (update for update in updates if update is not None):
        rank = left.shape[1]
        if left.shape[0] != tokens or right.shape != (rank, width):
            raise ValueError(
                f"factors of shapes {tuple(left.shape)} and {tuple(right.shape)} "
                f"do not make an update of {tuple(gate.shape)}"
            )
        if not 0 < rank <= MOST_RANK:
            raise ValueError(f"an update of rank {rank}; the kernels take 1 to {MOST_RANK}")
        if left.dtype != gate.dtype or right.dtype != gate.dtype:
            raise ValueError(f"factors are {left.dtype} and {right.dtype}; gate is {gate.dtype}")


def _elsewhere(
    dh_TF: torch.Tensor, gate_TF: torch.Tensor, up_TF: torch.Tensor, kind: str, **updates: LowRank | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The backward pass with fresh results, for the check: dgate, dup, h."""
    fresh = torch.empty((3, *gate_TF.shape), dtype=gate_TF.dtype, device=gate_TF.device)
    glu_low_rank_backward(dh_TF, gate_TF, up_TF, kind, **updates, h_TF=fresh[2], out=(fresh[0], fresh[1]))
    return fresh[0], fresh[1], fresh[2]


def reference_gradients(
    dh_TF: torch.Tensor,
    gate_TF: torch.Tensor,
    up_TF: torch.Tensor,
    kind: str,
    dh_update: LowRank | None = None,
    gate_update: LowRank | None = None,
    up_update: LowRank | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dgate, dup and h, by autograd from the plain forward pass."""
    updated = (summed(gate_TF, gate_update), summed(up_TF, up_update))
    leaves = [each.detach().requires_grad_() for each in updated]
    with torch.enable_grad():
        h = plain_glu(leaves[0], leaves[1], kind)
    dgate, dup = torch.autograd.grad(h, leaves, summed(dh_TF, dh_update))
    return dgate.to(gate_TF.dtype), dup.to(gate_TF.dtype), h.detach().to(gate_TF.dtype)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Gate and up in one buffer; their factors side by side too, right ones transposed, as B is held."""
    sizes, generator = case.sizes, torch.Generator(device).manual_seed(seed)
    tokens, width, rank, padding = sizes["tokens"], sizes["width"], sizes["rank"], sizes.get("padding", 0)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator, device=device) * scale).to(dtype)

    both, t = normal(tokens, 2 * width + padding), normal(tokens, 2 * rank + padding)
    sb = normal(2 * width, 2 * rank, scale=rank**-0.5)
    inputs: Inputs = {"gate_TF": both[:, :width], "up_TF": both[:, width : 2 * width], "kind": sizes["kind"]}
    updated = sizes.get("updated", "gate up dh")
    if "gate" in updated:
        inputs["gate_update"] = (t[:, :rank], sb[:width, :rank].T)
    if "up" in updated:
        inputs["up_update"] = (t[:, rank : 2 * rank], sb[width:, rank:].T)
    return inputs


def _backward_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Besides dh and dt as two parts of one buffer, as one product writes them."""
    sizes, generator = case.sizes, torch.Generator(device).manual_seed(seed + 1)
    tokens, width, rank = sizes["tokens"], sizes["width"], sizes["rank"]
    wide_dh = torch.randn(tokens, width + rank, generator=generator, device=device).to(dtype)
    inputs: Inputs = {"dh_TF": wide_dh[:, :width], **_inputs(case, dtype, device, seed)}
    if "dh" in sizes.get("updated", "gate up dh"):
        a = torch.randn(rank, width, generator=generator, device=device) * rank**-0.5
        inputs["dh_update"] = (wide_dh[:, width:], a.to(dtype))
    return inputs


def _cases(*also: Case) -> tuple[Case, ...]:
    return (
        Case("rank 4", {"tokens": 5, "width": 96, "rank": 4, "kind": "swiglu"}),
        Case("rank 16", {"tokens": 40, "width": 130, "rank": 16, "kind": "geglu_tanh"}),
        Case("rank 48", {"tokens": 33, "width": 70, "rank": 48, "kind": "geglu"}),
        Case("rank 128", {"tokens": 3, "width": 40, "rank": 128, "kind": "swiglu"}),
        Case("odd", {"tokens": 7, "width": 257, "rank": 3, "kind": "swiglu", "padding": 5}),
        Case("gate alone", {"tokens": 6, "width": 48, "rank": 8, "kind": "swiglu", "updated": "gate"}),
        *also,
        Case("empty", {"tokens": 0, "width": 96, "rank": 16, "kind": "swiglu"}),
    )


def _timed(**more: str) -> tuple[Case, ...]:
    sizes = {"tokens": 8192, "rank": 16, "kind": "swiglu", **more}
    return tuple(Case(name, {**sizes, "width": width}) for name, width in (("8b", 14336), ("0.6b", 3072)))


def _compilation(
    function: Any, kind: str, rank: int, absent: tuple[str, ...] = (), **limits: int
) -> Compilation:
    """As the fast path launches it: sB's rows lie along the rank, A's along the width."""
    launch = launch_of(rank, False, 0 if limits.get("most_capability") == 75 else _ROOM)
    constants: dict[str, Any] = {"KIND": kind, "RANK": rank, "ROWS": launch.rows, "COLUMNS": launch.columns}
    constants |= {"CAST": False, "STAGES": launch.stages, "gate_down": 1, "up_down": 1}
    if function is backward_kernel:
        constants |= {"DH_RANK": rank, "dh_across": 1}
    constants |= {f"{update}_{side}": None for update in absent for side in ("left", "right")}
    signature = {
        name: "constexpr"
        if name in constants
        else "*T"
        if name.endswith(("_ptr", "_left", "_right"))
        else "i32"
        for name in function.arg_names
    }
    return Compilation(function, signature, constants, launch.warps, launch.stages, **limits)


_TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}

SPEC = KernelSpec(
    name="glu_low_rank",
    operation=glu_low_rank_forward,
    reference=reference,
    inputs=_inputs,
    cases=_cases(),
    timed=_timed(),
    tolerance=_TOLERANCE,
    traffic=lambda inputs: 3 * bytes_of(inputs["gate_TF"]),
    compilations=(
        _compilation(forward_kernel, "swiglu", 16),
        _compilation(forward_kernel, "geglu", 64),
        _compilation(forward_kernel, "swiglu", 128, most_capability=75),
        _compilation(forward_kernel, "swiglu", 128, least_capability=80),
    ),
)

BACKWARD_SPEC = KernelSpec(
    name="glu_low_rank_backward",
    operation=_elsewhere,
    reference=reference_gradients,
    inputs=_backward_inputs,
    cases=_cases(
        Case("dh alone", {"tokens": 37, "width": 140, "rank": 16, "kind": "swiglu", "updated": "dh"}),
        Case("up alone", {"tokens": 6, "width": 48, "rank": 8, "kind": "geglu_tanh", "updated": "up"}),
    ),
    timed=(*_timed(), *(Case(f"{case.name} dh alone", case.sizes) for case in _timed(updated="dh"))),
    tolerance=_TOLERANCE,
    traffic=lambda inputs: 6 * bytes_of(inputs["gate_TF"]),
    compilations=(
        _compilation(backward_kernel, "swiglu", 16, absent=("gate", "up")),
        _compilation(backward_kernel, "swiglu", 16),
        # Volta and Turing, whose products of this rank are sums in registers, are the ones that spill.
        _compilation(backward_kernel, "geglu", 64, spill_limit=160),
        _compilation(backward_kernel, "swiglu", 128, most_capability=75),
        _compilation(backward_kernel, "swiglu", 128, least_capability=80),
    ),
)
