"""Linear layers of a mixture of experts: each group of rows by its own weights, LoRA in the same pass.

Rows sorted by expert, x_e those of expert e (offsets_X1[e] to offsets_X1[e + 1]):

    h_e = s x_e A_e'                 y_e = x_e W_e' + h_e B_e'
    dh_e = s dy_e B_e                dx_e = dy_e W_e + dh_e A_e
    dA_e = dh_e' x_e    dB_e = dy_e' h_e    dW_e = dy_e' x_e

y and dx are one kernel: the LoRA product is one more step of the same sum. How many rows an expert has is
known on the device only. A first small kernel cuts the groups into row tiles; the grid has room for as many
as there can be, and programs without a tile return at once, so the host never waits and a CUDA graph can hold
it.

From compute capability 9.0 on a copy engine reads x and the weights where x's rows lie in the experts' order
(see :mod:`.descriptors`). TFLOP/s of y / dx with their LoRA update, in bf16 on one H200: 660 / 670 at
Mixtral's shape (8 experts), where cuBLAS an expert at a time, which has to know the groups' sizes on the
host, makes 573 / 670, and torch's ``grouped_mm``, the update added to it, 672 / 616; 521 / 537 at Qwen3's
(128 experts), ``grouped_mm`` 432 / 470.

With a :class:`.moe_routing.Routing` the sorted copy of x is never made: row tiles are gathered as they are
read, forward and for dA and dW.

Weights are stacked as transformers keeps them: W (X, N, D), e.g. ``gate_up_proj`` (X, 2F, D) and
``down_proj`` (X, D, F). :func:`stacked_factors` views PEFT's LoRA on such parameters (``target_parameters``)
as A and B.

Before compute capability 8.0 Triton has no tensor cores and these products run on the scalar units.

Legend: S rows, one for each token and expert it goes to; X experts, D and N widths, R rank.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
import triton

from .attention_choice import nvidia_capability
from .backend import interpreting, uses_triton
from .descriptors import describable, descriptor
from .grouped_gemm_tiles import compilations, matmul_tile, outer_tile, row_group
from .grouped_gemm_triton import grouped_matmul_kernel, grouped_outer_kernel, schedule_kernel
from .moe_routing import Routing, route, sum_slots
from .rows import addressable, row_stride
from .spec import Case, Inputs, KernelSpec, bytes_of


@lru_cache(maxsize=16)
def _capability(device: torch.device) -> int:
    major, minor = nvidia_capability(device) or (8, 0)
    return 10 * major + minor


def grouped_matmul(
    x: torch.Tensor,
    weight_XNK: torch.Tensor,
    offsets_X1: torch.Tensor,
    h_SR: torch.Tensor | None = None,
    b_XNR: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    rows_S: torch.Tensor | None = None,
    transposed: bool = False,
) -> torch.Tensor:
    """scale (x_e W_e' + h_e B_e') for every expert's rows; no host sync on a GPU.

    Args:
        x: (S, K) sorted by expert, or (T, K) with ``rows_S``; unit last stride, any row stride.
        weight_XNK: (X, N, K), of x's type; (X, K, N) if ``transposed``.
        offsets_X1: (X + 1,) int32, where each expert's rows begin; 0 first, S last.
        h_SR: (S, R), a second operand sorted by expert.
        b_XNR: (X, N, R), its weights; (X, R, N) if ``transposed``.
        rows_S: (S,) int32, the row of x that each sorted row is.

    Returns:
        (S, N), of x's type.
    """
    size = x.shape[0] if rows_S is None else rows_S.shape[0]
    experts = weight_XNK.shape[0]
    n, k = weight_XNK.shape[:0:-1] if transposed else weight_XNK.shape[1:]
    if size == 0:
        return x.new_zeros(0, n)
    if not uses_triton(x):
        return _matmul_plain(x, weight_XNK, offsets_X1, h_SR, b_XNR, scale, rows_S, transposed)
    x, weight = addressable(x), weight_XNK.contiguous()
    y_SN = torch.empty(size, n, dtype=x.dtype, device=x.device)
    rank = 0 if h_SR is None else h_SR.shape[1]
    tile = matmul_tile(size, experts, n, x.dtype, _capability(x.device))
    tile_expert, tile_row = _schedule(offsets_X1, size, experts, tile.rows)
    grid = (tile_expert.shape[0] * triton.cdiv(n, tile.columns),)
    flat = weight.flatten(0, 1)
    # Gathered rows have no descriptor on every such GPU. The last step through a transposed weight must not
    # go on into the next expert: what x's zeros are multiplied by there may be infinite.
    described = rows_S is None and x.itemsize == 2 and k % tile.depth == 0 and describable(x, flat)
    w_tile = (tile.depth, tile.columns) if transposed else (tile.columns, tile.depth)
    grouped_matmul_kernel[grid](
        descriptor(x, tile.rows, tile.depth) if described else x,
        descriptor(flat, *w_tile) if described else weight,
        x if h_SR is None else addressable(h_SR), x if b_XNR is None else b_XNR.contiguous(), y_SN,
        offsets_X1 if rows_S is None else rows_S, offsets_X1, tile_expert, tile_row, tile_expert.shape[0],
        n, k, rank, x.stride(0), row_stride(h_SR), y_SN.stride(0), scale,
        GROUP=row_group(n * k * x.element_size()), TILE_M=tile.rows, TILE_N=tile.columns, TILE_K=tile.depth,
        TILE_R=max(16, triton.next_power_of_2(rank)), TRANSPOSED=transposed, DESCRIBED=described,
        EVEN_K=k % tile.depth == 0, GATHER=rows_S is not None, LORA=rank > 0,
        CAST=interpreting(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y_SN


def _schedule(
    offsets_X1: torch.Tensor, size: int, experts: int, tile: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert and first row of every row tile, int32; -1 for an expert where no tile is left."""
    tiles = size // tile + experts
    tile_expert, tile_row = torch.empty(2, tiles, dtype=torch.int32, device=offsets_X1.device).unbind()
    schedule_kernel[(experts + 1,)](
        offsets_X1, tile_expert, tile_row, experts, tiles,
        TILE=tile, EXPERTS=triton.next_power_of_2(experts), BLOCK=128, num_warps=1,
    )  # fmt: skip
    return tile_expert, tile_row


def _matmul_plain(
    x: torch.Tensor,
    weight: torch.Tensor,
    offsets_X1: torch.Tensor,
    h_SR: torch.Tensor | None,
    b: torch.Tensor | None,
    scale: float,
    rows_S: torch.Tensor | None,
    transposed: bool,
) -> torch.Tensor:
    x = x if rows_S is None else x[rows_S.long()]
    out = []
    for expert, (start, stop) in enumerate(_groups(offsets_X1)):
        w_NK = weight[expert].T if transposed else weight[expert]
        part = F.linear(x[start:stop], w_NK)
        if h_SR is not None and b is not None:
            part = part + F.linear(h_SR[start:stop], b[expert].T if transposed else b[expert])
        out.append(part * scale)
    return torch.cat(out)


def grouped_outer(
    a_SM: torch.Tensor,
    b: torch.Tensor,
    offsets_X1: torch.Tensor,
    *,
    rows_S: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """a_e' b_e summed over every expert's rows, (X, M, N) of ``dtype``; zeros for an expert without any.

    Args:
        a_SM: (S, M) sorted by expert.
        b: (S, N) sorted by expert, or (T, N) with ``rows_S``.
        offsets_X1: as :func:`grouped_matmul` has it.
        rows_S: (S,) int32, the row of ``b`` that each sorted row is.
    """
    experts, m, n = offsets_X1.shape[0] - 1, a_SM.shape[1], b.shape[1]
    if a_SM.shape[0] == 0:
        return torch.zeros(experts, m, n, dtype=dtype, device=a_SM.device)
    if not uses_triton(a_SM):
        b = b if rows_S is None else b[rows_S.long()]
        return torch.stack([a_SM[i:j].T @ b[i:j] for i, j in _groups(offsets_X1)]).to(dtype)
    a_SM, b = addressable(a_SM), addressable(b)
    out = torch.empty(experts, m, n, dtype=dtype, device=a_SM.device)
    tile = outer_tile(m, n, a_SM.dtype, _capability(a_SM.device))
    grouped_outer_kernel[(experts * triton.cdiv(m, tile.rows) * triton.cdiv(n, tile.columns),)](
        a_SM, b, out, offsets_X1 if rows_S is None else rows_S, offsets_X1, m, n, a_SM.stride(0), b.stride(0),
        TILE_M=tile.rows, TILE_N=tile.columns, TILE_S=tile.depth, GATHER=rows_S is not None,
        CAST=interpreting(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def _groups(offsets_X1: torch.Tensor) -> list[tuple[int, int]]:
    """Start and end of each group, on the host: references only."""
    edges = offsets_X1.tolist()
    return list(pairwise(edges))


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        offsets: torch.Tensor,
        lora_a: torch.Tensor | None,
        lora_b: torch.Tensor | None,
        scaling: float,
        rows: torch.Tensor | None,
        positions: torch.Tensor | None,
    ) -> torch.Tensor:
        h = a = b = None
        if lora_a is not None and lora_b is not None:
            a, b = (factor.to(x.dtype).contiguous() for factor in (lora_a, lora_b))
            h = grouped_matmul(x, a, offsets, scale=scaling, rows_S=rows)
            ctx.factor_dtypes = lora_a.dtype, lora_b.dtype
        ctx.save_for_backward(x, weight, offsets, a, b, h, rows, positions)
        ctx.scaling = scaling
        return grouped_matmul(x, weight, offsets, h, b, rows_S=rows)

    @staticmethod
    def backward(ctx: Any, dy_SN: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight, offsets, a, b, h, rows, positions = ctx.saved_tensors
        need_x, need_weight, _, need_a, need_b, *_ = ctx.needs_input_grad
        dh = dx = dweight = da = db = None
        if h is not None and (need_x or need_a):
            dh = grouped_matmul(dy_SN, b, offsets, scale=ctx.scaling, transposed=True)
        if need_x:
            dx = grouped_matmul(dy_SN, weight, offsets, dh, a, transposed=True)
            dx = dx if positions is None else sum_slots(dx, positions)
        if need_weight:
            dweight = grouped_outer(dy_SN, x, offsets, rows_S=rows, dtype=weight.dtype)
        if need_a and dh is not None:
            da = grouped_outer(dh, x, offsets, rows_S=rows, dtype=ctx.factor_dtypes[0])
        if need_b and h is not None:
            db = grouped_outer(dy_SN, h, offsets, dtype=ctx.factor_dtypes[1])
        return dx, dweight, None, da, db, None, None, None


def grouped_linear(
    x: torch.Tensor,
    weight_XND: torch.Tensor,
    offsets_X1: torch.Tensor,
    lora_a_XRD: torch.Tensor | None = None,
    lora_b_XNR: torch.Tensor | None = None,
    scaling: float = 1.0,
    *,
    routing: Routing | None = None,
) -> torch.Tensor:
    """x_e W_e' + scaling (x_e A_e') B_e' for every expert's rows; differentiable in x, W, A and B.

    Args:
        x: (S, D) sorted by expert; with ``routing`` the tokens (T, D), gathered as they are read.
        weight_XND: (X, N, D), of x's type; its gradient is only made if it requires one.
        offsets_X1: (X + 1,) int32 on the device, see :class:`.moe_routing.Routing`.
        lora_a_XRD: (X, R, D), any float type; used in x's.
        lora_b_XNR: (X, N, R), any strides.
        scaling: alpha / rank, as PEFT has it.

    Returns:
        (S, N), sorted by expert.

    Raises:
        ValueError: where the sizes do not fit each other.
    """
    experts, n, d = weight_XND.shape
    if x.shape[1] != d or offsets_X1.shape[0] != experts + 1:
        raise ValueError(
            f"x {tuple(x.shape)}, weight {tuple(weight_XND.shape)} and offsets {tuple(offsets_X1.shape)} "
            "do not fit: needed are (rows, D), (X, N, D) and (X + 1,)"
        )
    if (lora_a_XRD is None) != (lora_b_XNR is None):
        raise ValueError("LoRA needs both factors, A (X, R, D) and B (X, N, R)")
    if lora_a_XRD is not None and lora_b_XNR is not None:
        rank = lora_a_XRD.shape[1]
        if lora_a_XRD.shape != (experts, rank, d) or lora_b_XNR.shape != (experts, n, rank):
            raise ValueError(
                f"A {tuple(lora_a_XRD.shape)} and B {tuple(lora_b_XNR.shape)} do not fit the weight "
                f"{tuple(weight_XND.shape)}: needed are (X, R, D) and (X, N, R)"
            )
    gather = (None, None) if routing is None else (routing.tokens_S, routing.positions_TK)
    return _GroupedLinear.apply(x, weight_XND, offsets_X1, lora_a_XRD, lora_b_XNR, scaling, *gather)


def stacked_factors(
    lora_a: torch.Tensor, lora_b: torch.Tensor, experts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """PEFT's LoRA on a stacked expert parameter (``target_parameters``) as A and B, views.

    Args:
        lora_a: (X R, D), ``lora_A.weight``, the experts' ranks one after the other.
        lora_b: (N, R X), ``lora_B.weight``, the ranks' experts one after the other.

    Returns:
        (X, R, D) and (X, N, R).
    """
    rank = lora_a.shape[0] // experts
    a_XRD = lora_a.view(experts, rank, lora_a.shape[1])
    return a_XRD, lora_b.view(lora_b.shape[0], rank, experts).permute(2, 0, 1)


def reference(
    x: torch.Tensor,
    weight_XND: torch.Tensor,
    offsets_X1: torch.Tensor,
    lora_a_XRD: torch.Tensor | None = None,
    lora_b_XNR: torch.Tensor | None = None,
    scaling: float = 1.0,
    *,
    routing: Routing | None = None,
) -> torch.Tensor:
    """An expert at a time, differentiated by autograd."""
    x = x if routing is None else x[routing.tokens_S.long()]
    out = []
    for expert, (start, stop) in enumerate(_groups(offsets_X1)):
        part = x[start:stop]
        y = F.linear(part, weight_XND[expert])
        if lora_a_XRD is not None and lora_b_XNR is not None:
            y = y + scaling * F.linear(F.linear(part, lora_a_XRD[expert]), lora_b_XNR[expert])
        out.append(y)
    return torch.cat(out)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    t, x, k, d, n, r = (case.sizes[name] for name in "TXKDNR")
    scores = torch.rand(t, x, generator=generator, device=device)
    scores[:, case.sizes.get("idle", x) :] = -1  # experts that nobody chooses
    routing = route(scores.topk(k, dim=1).indices, x)

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator, device=device) * scale).to(dtype)

    gathered = case.sizes.get("gather", False)
    inputs: Inputs = {
        "x": random(t if gathered else t * k, d + 16)[:, :d],
        "weight_XND": random(x, n, d, scale=d**-0.5),
        "offsets_X1": routing.offsets_X1,
        "routing": routing if gathered else None,
    }
    if r:
        a, b = stacked_factors(random(x * r, d, scale=d**-0.5), random(n, r * x, scale=0.3), x)
        inputs |= {"lora_a_XRD": a, "lora_b_XNR": b, "scaling": 2.0}
    return inputs


def _traffic(inputs: Inputs) -> int:
    rows, n = _rows(inputs), inputs["weight_XND"].shape[1]
    tensors = [inputs.get(name) for name in ("x", "weight_XND", "lora_a_XRD", "lora_b_XNR")]
    return bytes_of(*tensors) + rows * n * inputs["x"].element_size()


def _rows(inputs: Inputs) -> int:
    routing = inputs["routing"]
    return inputs["x"].shape[0] if routing is None else routing.tokens_S.shape[0]


def _flops(inputs: Inputs) -> int:
    _, n, d = inputs["weight_XND"].shape
    rank = inputs["lora_a_XRD"].shape[1] if "lora_a_XRD" in inputs else 0
    return 2 * _rows(inputs) * (n * d + rank * (n + d))


def _backward_flops(inputs: Inputs) -> int:
    """dx, dA and dB; the base is frozen."""
    _, n, d = inputs["weight_XND"].shape
    rank = inputs["lora_a_XRD"].shape[1] if "lora_a_XRD" in inputs else 0
    return 2 * _rows(inputs) * (n * d + 2 * rank * (n + d))


_QWEN, _MIXTRAL = {"T": 8192, "X": 128, "K": 8, "R": 16}, {"T": 8192, "X": 8, "K": 2, "R": 16}
SPEC = KernelSpec(
    name="grouped_gemm",
    operation=grouped_linear,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("sorted", {"T": 21, "X": 5, "K": 2, "D": 40, "N": 37, "R": 3}),
        Case("gathered", {"T": 13, "X": 6, "K": 3, "D": 64, "N": 48, "R": 16, "gather": True}),
        Case("idle", {"T": 9, "X": 8, "K": 2, "D": 33, "N": 20, "R": 4, "idle": 3, "gather": True}),
        Case("aligned", {"T": 40, "X": 3, "K": 2, "D": 128, "N": 192, "R": 16}),
        Case("no_lora", {"T": 70, "X": 1, "K": 1, "D": 32, "N": 24, "R": 0}),
        Case("empty", {"T": 0, "X": 4, "K": 2, "D": 16, "N": 16, "R": 4}),
    ),
    timed=(
        Case("qwen3-30b gate_up", {**_QWEN, "D": 2048, "N": 1536, "gather": True}),
        Case("qwen3-30b down", {**_QWEN, "D": 768, "N": 2048}),
        Case("mixtral gate_up", {**_MIXTRAL, "D": 4096, "N": 28672, "gather": True}),
    ),
    tolerance={torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3},
    traffic=_traffic,
    flops=_flops,
    differentiable=("x", "weight_XND", "lora_a_XRD", "lora_b_XNR"),
    backward_flops=_backward_flops,
    frozen=("weight_XND",),
    compilations=compilations(),
)
