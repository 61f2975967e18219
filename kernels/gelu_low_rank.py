"""The backward pass of GELU where the gradient that comes still lacks a low-rank update.

    dx = (dy + dt A) gelu'(x)        y = gelu(x), once more

As :mod:`.glu_low_rank` does it for gated units: the product before could not carry its LoRA update
(arXiv:2106.09685), and adding it here spares a pass over what is widest in a layer.

Legend: T tokens, F features, R rank.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .backend import uses_triton
from .fp8 import shared_memory
from .gelu import gelu_backward, gelu_probability
from .glu_low_rank import MOST_RANK, LowRank, casts, launch_grid, launch_of, numbers_of, padded_rank, summed
from .glu_low_rank_triton import left_factor, lines, place, right_factor, updated
from .rows import addressable, output
from .spec import Case, Compilation, Inputs, KernelSpec, bytes_of

_STAGES, _STEPS = 1, 4  # arithmetic bounds it, and bringing tiles in ahead takes instructions


@triton.jit
def _as_updated(x):
    """x itself, by way of a product of zeros to where a product leaves its results.

    Else the compiler works out x's probability twice: beside dy, which was updated, and for y.
    """
    left = tl.zeros((16, 16), tl.float16)
    right = tl.zeros((16, x.shape[0] * x.shape[1] // 16), tl.float16)
    return updated(x, left, right, False)


@triton.jit(do_not_specialize=["rows", "steps"])
def _backward_kernel(
    dy_ptr, x_ptr, dx_ptr, y_ptr, left, right, rows, columns, steps, dy_row, x_row, dx_row, y_row,
    left_row, across, down, rank,
    TANH: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    first, start = place(columns, steps, ROWS, COLUMNS)
    below, beside = lines(ROWS, COLUMNS)
    column = start + beside
    factor = right_factor(right, across, down, rank, start, columns, RANK, COLUMNS)
    for step in range(steps):
        above = first + step * ROWS
        row = above + below
        mask = (row < rows) & (column < columns)
        dy = tl.load(dy_ptr + row * dy_row + column, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * x_row + column, mask=mask, other=0.0).to(tl.float32)
        tile = left_factor(left, left_row, rank, above, rows, RANK, ROWS)
        dy = updated(dy, tile, factor, CAST)
        x = _as_updated(x)
        probability, density = gelu_probability(x, TANH)
        dx = (dy * (probability + x * density)).to(dx_ptr.dtype.element_ty)
        tl.store(dx_ptr + row * dx_row + column, dx, mask=mask)
        y = (x * probability).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + row * y_row + column, y, mask=mask)


def gelu_low_rank_backward(
    dy_TF: torch.Tensor,
    x_TF: torch.Tensor,
    update: LowRank,
    *,
    approximate: str = "none",
    out_TF: torch.Tensor,
    y_TF: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dx_TF, y_TF).

    Args:
        dy_TF: gradient of the result, but for ``update``; rows of any stride, as of all.
        x_TF: the forward input.
        update: factors dt (T, R) and A (R, F), of x's type.
        approximate: as in :func:`.gelu.gelu_forward`.
        out_TF: where dx goes; may be ``x_TF``.
        y_TF: where the forward result goes; may be ``dy_TF``.

    Raises:
        ValueError: for shapes that do not fit, or a rank over :data:`.glu_low_rank.MOST_RANK`.
    """
    left, right = update
    if left.shape[0] != len(x_TF) or right.shape != (left.shape[1], x_TF.shape[1]):
        raise ValueError(f"factors of shapes {tuple(left.shape)} and {tuple(right.shape)} do not fit x")
    if not 0 < left.shape[1] <= MOST_RANK:
        raise ValueError(f"an update of rank {left.shape[1]}; the kernel takes 1 to {MOST_RANK}")
    out, y = output(out_TF, x_TF), output(y_TF, x_TF)
    if not x_TF.numel():
        return out, y
    if not uses_triton(x_TF):
        gelu_backward(summed(dy_TF, update), x_TF, approximate=approximate, out_TF=out, y_TF=y)
        return out, y
    dy, x, (rows, columns) = addressable(dy_TF), addressable(x_TF), x_TF.shape
    rank = padded_rank(update)
    launch = launch_of(rank, x.element_size() > 2, shared_memory(x.device))
    programs, steps = launch_grid(rows, columns, launch, _STEPS)
    factors, numbers = numbers_of(update)
    _backward_kernel[(programs,)](
        dy, x, out, y, *factors, rows, columns, steps,
        dy.stride(0), x.stride(0), out.stride(0), y.stride(0), *numbers,
        TANH=approximate == "tanh", RANK=rank, ROWS=launch.rows, COLUMNS=launch.columns,
        CAST=casts(x), num_warps=launch.warps, num_stages=_STAGES,
    )  # fmt: skip
    return out, y


def _elsewhere(
    dy_TF: torch.Tensor, x_TF: torch.Tensor, left_TR: torch.Tensor, right_RF: torch.Tensor, approximate: str
) -> tuple[torch.Tensor, torch.Tensor]:
    fresh = torch.empty((2, *x_TF.shape), dtype=x_TF.dtype, device=x_TF.device)
    return gelu_low_rank_backward(
        dy_TF, x_TF, (left_TR, right_RF), approximate=approximate, out_TF=fresh[0], y_TF=fresh[1]
    )


def reference(
    dy_TF: torch.Tensor, x_TF: torch.Tensor, left_TR: torch.Tensor, right_RF: torch.Tensor, approximate: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by autograd, in float32, or float64 for float64."""
    with torch.enable_grad():
        dy = summed(dy_TF, (left_TR, right_RF))
        x = x_TF.detach().to(dy.dtype).requires_grad_(True)
        y = torch.nn.functional.gelu(x, approximate=approximate)
        (dx,) = torch.autograd.grad(y, x, dy.detach())
    return dx.to(x_TF.dtype), y.detach().to(x_TF.dtype)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    tokens, width, rank = (case.sizes[name] for name in ("tokens", "width", "rank"))
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    wide = normal(tokens, width + rank).to(dtype)  # as a product gives both
    return {
        "dy_TF": wide[:, :width],
        "x_TF": (2 * normal(tokens, width)).to(dtype),
        "left_TR": wide[:, width:],
        "right_RF": (normal(rank, width) * rank**-0.5).to(dtype),
        "approximate": case.sizes["approximate"],
    }


_TIMED = launch_of(32, False, 0)

SPEC = KernelSpec(
    name="gelu_low_rank",
    operation=_elsewhere,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("exact", {"tokens": 40, "width": 64, "rank": 16, "approximate": "none"}),
        Case("odd", {"tokens": 37, "width": 83, "rank": 5, "approximate": "tanh"}),
        Case("empty", {"tokens": 0, "width": 40, "rank": 8, "approximate": "none"}),
    ),
    timed=(Case("bge_m3", {"tokens": 8192, "width": 4096, "rank": 32, "approximate": "none"}),),
    tolerance={torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    traffic=lambda inputs: 2 * bytes_of(inputs["x_TF"], inputs["dy_TF"]),
    differentiable=(),
    compilations=tuple(
        Compilation(
            _backward_kernel,
            {
                **dict.fromkeys(("dy_ptr", "x_ptr", "dx_ptr", "y_ptr", "left", "right"), "*T"),
                **dict.fromkeys(("rows", "columns", "steps", "dy_row", "x_row", "dx_row", "y_row"), "i32"),
                **dict.fromkeys(("left_row", "across", "down", "rank"), "i32"),
                **dict.fromkeys(("TANH", "RANK", "ROWS", "COLUMNS", "CAST"), "constexpr"),
            },
            {
                "TANH": tanh,
                "RANK": 32,
                "ROWS": _TIMED.rows,
                "COLUMNS": _TIMED.columns,
                "CAST": False,
            },
            num_warps=_TIMED.warps,
            num_stages=_STAGES,
        )
        for tanh in (False, True)
    ),
)
