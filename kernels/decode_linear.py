"""A linear layer and its LoRA update for a few rows of x, straight from the weights as they are stored.

    y = x W^T + t sB^T + bias,    t = x A^T

With one row every weight is used once, so reading W decides the time: 16-bit weights are multiplied as they
come, those in 4 (NF4) and 8 bits (int8, FP8) are expanded in registers, where expanding them in memory first
would move several times their bytes. A program takes some rows of W and runs along them; the sums are in fp32
and rounded once. NF4 takes more rows too, on tensor cores, and so does LoRA's A; other weights with more rows
are torch's. The kernel that computes t is small: the one that multiplies by W starts beside it.

Legend: B rows, K inputs, N outputs, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton

from . import decode_linear_nf4 as nf4
from .attention_choice import nvidia_capability, starts_early
from .backend import interpreting, uses_triton
from .decode_linear_triton import (
    COMPILATIONS,
    FEW_OUTPUTS,
    MOST_ROWS,
    dense_kernel,
    dense_tile,
    nf4_kernel,
    nf4_rows_kernel,
    nf4_tile,
    rows_tile,
)
from .fp8 import converts_natively, dequantize_rows, quantize_rows
from .int8 import reference as expand_int8
from .nf4 import reference as expand_nf4
from .nf4 import scale_arguments
from .nf4_format import Nf4Weight, quantize_nf4
from .nf4_lookup import permutes_natively
from .rows import accumulation_type, resident_programs
from .spec import Case, Inputs, KernelSpec, bytes_of

EARLY_PROGRAMS = 4
"""A processor, from which on a product starts beside A's kernel. Found by trying, on an H200."""


@dataclass(frozen=True)
class ScaledWeight:
    """8 bits (N, K) and an fp32 scale a row (N,): int8 with each row's largest magnitude, as LLM.int8()
    stores them, or float8_e4m3fn with what its rows are multiplied by."""

    data: torch.Tensor
    scale: torch.Tensor


Weight = torch.Tensor | Nf4Weight | ScaledWeight


def takes(weight: Weight, rows: int) -> bool:
    """Whether :func:`decode_linear` has a kernel for this weight and so many rows of x."""
    if isinstance(weight, Nf4Weight):
        whole = weight.shape[1] % weight.blocksize == 0 and weight.packed.data_ptr() % 4 == 0
        return whole and 1 <= rows <= MOST_ROWS
    if isinstance(weight, ScaledWeight) and weight.data.dtype == torch.float8_e4m3fn:
        return rows == 1 and (interpreting() or converts_natively(weight.data.device))
    few = isinstance(weight, torch.Tensor) and len(weight) < FEW_OUTPUTS
    return rows == 1 or (few and 1 < rows <= MOST_ROWS)


def decode_linear(
    x_BK: torch.Tensor,
    weight: Weight,
    *,
    a_RK: torch.Tensor | None = None,
    sb_NR: torch.Tensor | None = None,
    t_BR: torch.Tensor | None = None,
    bias_N: torch.Tensor | None = None,
    out_BN: torch.Tensor | None = None,
) -> torch.Tensor:
    """y for a few rows of x. No gradient, no host synchronisation.

    Args:
        x_BK: fp32, bf16 or fp16; rows of any stride.
        weight: (N, K), in x's type (rows of any stride), NF4, int8 or FP8.
        a_RK: LoRA's A in x's type, with ``sb_NR``: t is computed here.
        sb_NR: LoRA's B times its scaling, rows of any stride.
        t_BR: x A^T where it is there already; with ``a_RK``, where it goes.
        bias_N: any float type.
        out_BN: where y goes, rows of any stride.

    Returns:
        (B, N) in x's type.
    """
    x_BK = x_BK if x_BK.stride(1) == 1 else x_BK.contiguous()
    follows_a = False
    if a_RK is not None:
        t_BR = decode_linear(x_BK, a_RK, out_BN=t_BR)
        follows_a = starts_early(x_BK.device) and takes(a_RK, len(x_BK)) and a_RK.numel() > 0
    if not uses_triton(x_BK) or not takes(weight, len(x_BK)) or not x_BK.shape[1]:
        y_BN = _plain(x_BK, weight, sb_NR, t_BR, bias_N)
        return y_BN if out_BN is None else out_BN.copy_(y_BN)
    outputs = len(weight) if isinstance(weight, torch.Tensor) else _shape(weight)[0]
    if out_BN is None:
        out_BN = x_BK.new_empty(len(x_BK), outputs)
    update = {
        "t": t_BR, "sb": sb_NR, "bias": bias_N, "y": out_BN, "t_row": 0 if t_BR is None else t_BR.stride(0),
        "sb_row": 0 if sb_NR is None else sb_NR.stride(0), "y_row": out_BN.stride(0), "N": outputs,
        "RANK": 0 if sb_NR is None else sb_NR.shape[1],
    }  # fmt: skip
    if not outputs:
        return out_BN
    if not isinstance(weight, Nf4Weight):
        _dense(x_BK, weight, update, follows_a)
    elif _fits_products(x_BK, weight):
        _nf4_products(x_BK, weight, update, follows_a)
    elif len(x_BK) == 1:
        _nf4(x_BK, weight, update, follows_a)
    else:
        _nf4_rows(x_BK, weight, update)
    return out_BN


def _shape(weight: Weight) -> tuple[int, int]:
    shape = weight.data.shape if isinstance(weight, ScaledWeight) else weight.shape
    return shape[0], shape[1]


def _start(follows_a: bool, programs: int, device: torch.device) -> dict[str, bool]:
    """Arguments of a launch that need not wait for the kernel before, which computes t, until t is added.

    Few programs would be spread unevenly beside that kernel's and end late; many balance themselves.
    """
    early = follows_a and programs >= resident_programs(device, EARLY_PROGRAMS)
    return {"WAITS": early, **({"launch_pdl": True} if early else {})}


def _units(stride: int, *sizes: int) -> tuple[int, int]:
    """A row stride in units of the first of these sizes that it is made of, and the unit.

    A launch passes both, and the compiler sees how rows are aligned.
    """
    unit = next((size for size in sizes if stride % size == 0), 1)
    return stride // unit, unit


def _dense(
    x_BK: torch.Tensor, weight: torch.Tensor | ScaledWeight, update: dict[str, Any], follows_a: bool
) -> None:
    w_NK, scale_N = (weight, None) if isinstance(weight, torch.Tensor) else (weight.data, weight.scale)
    if w_NK.stride(1) != 1:
        w_NK, follows_a = w_NK.contiguous(), False
    (x_units, x_unit), (w_units, unit) = _units(x_BK.stride(0), 8), _units(w_NK.stride(0), 16, 8)
    outputs, block, warps = dense_tile(len(w_NK), w_NK.shape[1], w_NK.element_size())
    whole = outputs * block >= 4 * 32 * warps  # words of four bytes in each thread
    permute = w_NK.dtype == torch.int8 and whole and permutes_natively(x_BK.device)
    programs = triton.cdiv(len(w_NK), outputs)
    dense_kernel[(programs, len(x_BK))](
        x=x_BK, w=w_NK, scale=scale_N, **update, x_units=x_units, w_units=w_units, K=w_NK.shape[1],
        X_UNIT=x_unit, UNIT=unit, RANKS=triton.next_power_of_2(max(1, update["RANK"])), OUTPUTS=outputs,
        BLOCK=block, PERMUTE=permute, ASKS=len(w_NK) < FEW_OUTPUTS and starts_early(x_BK.device),
        num_warps=warps, **_start(follows_a, programs, x_BK.device),
    )  # fmt: skip


def _nf4(x_BK: torch.Tensor, weight: Nf4Weight, update: dict[str, Any], follows_a: bool) -> None:
    outputs, words, warps = nf4_tile(weight.shape[1])
    unused = ("t_row", "y_row")
    arguments = {name: value for name, value in update.items() if name not in unused}
    programs = triton.cdiv(weight.shape[0], outputs)
    nf4_kernel[(programs,)](
        x=x_BK, packed=weight.packed.view(torch.int32), code_ptr=weight.code, **arguments,
        **scale_arguments(weight), K=weight.shape[1], RANKS=triton.next_power_of_2(max(1, update["RANK"])),
        BLOCK_SIZE=weight.blocksize, OUTPUTS=outputs, WORDS=words, num_warps=warps,
        **_start(follows_a, programs, x_BK.device),
    )  # fmt: skip


def _nf4_rows(x_BK: torch.Tensor, weight: Nf4Weight, update: dict[str, Any]) -> None:
    outputs, words, warps = rows_tile(weight.shape[0], x_BK.device)
    nf4_rows_kernel[(triton.cdiv(weight.shape[0], outputs),)](
        x=x_BK, packed=weight.packed.view(torch.int32), code_ptr=weight.code, **update,
        **scale_arguments(weight), x_row=x_BK.stride(0), B=len(x_BK), K=weight.shape[1],
        RANKS=max(16, triton.next_power_of_2(max(1, update["RANK"]))), BLOCK_SIZE=weight.blocksize,
        OUTPUTS=outputs, WORDS=words, ROWS=MOST_ROWS, CAST=interpreting(), num_warps=warps,
    )  # fmt: skip


def _fits_products(x_BK: torch.Tensor, weight: Nf4Weight) -> bool:
    """Whether tensor cores take x's type, x and the blocks are made of pairs and of chunks, and it pays."""
    capability = nvidia_capability(x_BK.device)
    paired = x_BK.stride(0) % 2 == 0 and x_BK.data_ptr() % 4 == 0
    return (
        (len(x_BK) > 1 or weight.shape[0] >= nf4.MANY_OUTPUTS)
        and x_BK.element_size() == 2
        and paired
        and weight.blocksize % nf4.CHUNK == 0
        and (capability is None or capability >= (8, 0))
    )


def _nf4_products(x_BK: torch.Tensor, weight: Nf4Weight, update: dict[str, Any], follows_a: bool) -> None:
    outputs, permute = weight.shape[0], permutes_natively(x_BK.device)
    of_w, chunks, warps, stages = nf4.tile(outputs, len(x_BK))
    pairs = x_BK.view(torch.int32)
    x_units, x_unit = _units(pairs.stride(0), 4)
    programs = triton.cdiv(outputs, of_w)
    nf4.nf4_products_kernel[(programs,)](
        x=pairs, packed=weight.packed, code_ptr=weight.code, **update,
        **scale_arguments(weight), x_units=x_units, X_UNIT=x_unit, B=len(x_BK), K=weight.shape[1],
        RANKS=max(16, triton.next_power_of_2(max(1, update["RANK"]))), BLOCK_SIZE=weight.blocksize,
        OUTPUTS=of_w, CHUNKS=chunks, ROWS=8 if permute and len(x_BK) <= 8 else MOST_ROWS, STAGES=stages,
        PERMUTE=permute, CAST=interpreting(), num_warps=warps, **_start(follows_a, programs, x_BK.device),
    )  # fmt: skip


def _plain(
    x_BK: torch.Tensor,
    weight: Weight,
    sb_NR: torch.Tensor | None,
    t_BR: torch.Tensor | None,
    bias_N: torch.Tensor | None,
) -> torch.Tensor:
    y_BN = F.linear(x_BK, _expanded(weight, x_BK.dtype), None if bias_N is None else bias_N.to(x_BK.dtype))
    return y_BN if sb_NR is None or t_BR is None else y_BN.addmm_(t_BR, sb_NR.T)


def _expanded(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(weight, Nf4Weight):
        return expand_nf4(weight, dtype=dtype)
    if isinstance(weight, ScaledWeight):
        expand = expand_int8 if weight.data.dtype == torch.int8 else dequantize_rows
        return expand(weight.data, weight.scale, dtype=dtype)
    return weight


def reference(
    x_BK: torch.Tensor,
    weight: Weight,
    *,
    a_RK: torch.Tensor | None = None,
    sb_NR: torch.Tensor | None = None,
    t_BR: torch.Tensor | None = None,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`decode_linear` in plain torch: weights expanded to fp32, sums in fp32, t rounded."""
    wide = accumulation_type(x_BK.dtype)
    x = x_BK.to(wide)
    y_BN = x @ _expanded(weight, wide).to(wide).T
    if a_RK is not None:
        t_BR = (x @ a_RK.to(wide).T).to(x_BK.dtype)
    if sb_NR is not None and t_BR is not None:
        y_BN = y_BN + t_BR.to(wide) @ sb_NR.to(wide).T
    if bias_N is not None:
        y_BN = y_BN + bias_N.to(wide)
    return y_BN.to(x_BK.dtype)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    sizes, generator = case.sizes, torch.Generator(device).manual_seed(seed)
    b, k, n, r = (sizes[name] for name in "BKNR")

    def normal(rows: int, columns: int, scale: float = 1.0, padding: int = 8) -> torch.Tensor:
        wide = torch.randn(rows, columns + padding, generator=generator, device=device) * scale
        return wide.to(dtype)[:, :columns]

    dense = normal(n, k, k**-0.5)
    weight: Weight = dense
    if sizes["held"] == "nf4":
        blocksize, double = sizes.get("blocksize", 64), sizes.get("double", True)
        weight = quantize_nf4(dense.contiguous(), blocksize, double)
    if sizes["held"] == "int8":
        largest = dense.float().abs().amax(1).clamp_min(1e-6)
        weight = ScaledWeight((dense.float() * (127 / largest)[:, None]).round().to(torch.int8), largest)
    if sizes["held"] == "fp8":
        weight = ScaledWeight(*quantize_rows(dense))
    inputs: Inputs = {"x_BK": normal(b, k), "weight": weight}
    if r:
        inputs |= {"a_RK": normal(r, k, k**-0.5, 0), "sb_NR": normal(n, r)}
    if sizes.get("bias"):
        inputs["bias_N"] = normal(1, n)[0]
    return inputs


def _traffic(inputs: Inputs) -> int:
    """The weight as it is stored, factors, x and y."""
    weight, x = inputs["weight"], inputs["x_BK"]
    outputs = _shape(weight)[0]
    stored = {
        Nf4Weight: lambda: weight.nbytes(),
        ScaledWeight: lambda: bytes_of(weight.data, weight.scale),
        torch.Tensor: lambda: bytes_of(weight),
    }[type(weight)]()
    others = bytes_of(x, inputs.get("a_RK"), inputs.get("sb_NR"), inputs.get("bias_N"))
    return stored + others + len(x) * outputs * x.element_size()


_SMALL = {"B": 1, "K": 192, "N": 37, "R": 8, "held": "dense"}

SPEC = KernelSpec(
    name="decode_linear",
    operation=decode_linear,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("dense", _SMALL),
        Case("odd", {**_SMALL, "K": 35, "N": 5, "R": 3, "bias": True}),
        Case("many_outputs", {**_SMALL, "N": 600, "K": 16, "R": 0}),
        Case("rows", {**_SMALL, "B": 3, "bias": True}),
        Case("int8", {**_SMALL, "held": "int8"}),
        Case("fp8", {**_SMALL, "held": "fp8"}),
        Case("nf4", {**_SMALL, "held": "nf4", "bias": True}),
        Case("nf4_plain", {**_SMALL, "held": "nf4", "K": 64, "N": 6, "R": 0}),
        Case("nf4_rows", {**_SMALL, "held": "nf4", "B": 5, "bias": True}),
        Case("nf4_many_rows", {**_SMALL, "held": "nf4", "B": 17}),
        Case("nf4_single", {**_SMALL, "held": "nf4", "B": 2, "double": False, "blocksize": 128, "K": 640}),
        Case("nf4_short_blocks", {**_SMALL, "held": "nf4", "B": 2, "blocksize": 32}),
        Case("no_outputs", {**_SMALL, "N": 0}),
    ),
    timed=tuple(
        Case(f"{name}_{held}" + (f"_{rows}_rows" if rows > 1 else ""), {**sizes, "held": held, "B": rows})
        for held, rows in (("dense", 1), ("nf4", 1), ("nf4", 8), ("nf4", 16), ("int8", 1), ("fp8", 1))
        for name, sizes in {
            "8b_gate_up": {"K": 4096, "N": 28672, "R": 32},
            "8b_down": {"K": 14336, "N": 4096, "R": 16},
            "0.6b_gate_up": {"K": 1024, "N": 6144, "R": 32},
            "0.6b_down": {"K": 3072, "N": 1024, "R": 16},
        }.items()
    ),
    tolerance={torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3},
    traffic=_traffic,
    compilations=(*COMPILATIONS, *nf4.COMPILATIONS),
)  # fmt: skip
