"""Linear layers that read the same input, with their LoRA updates, as one matrix product.

y_i = x W_i^T + s_i (x A_i^T) B_i^T + bias_i (LoRA, arXiv:2106.09685), for i = q, k, v, or gate, up, or one.

The update rides in the base product instead of in products of its own: with x' = [x | t], t = x A^T, and
W' = [W | sB] (block-diagonal sB), y = x' W'^T. The product grows by R columns, about one part in a hundred,
and no output is read a second time. Backward, dy W' gives dx and dt = dy sB at once.

A base in 16 or 32 bits is kept as W' for good, the layers' own weights being views of it. A quantised base is
expanded into a workspace for each product, FP8 multiplies in FP8 and adds its update after.

Legend: T tokens, K inputs, N outputs of all layers together, R ranks of all layers together (padded to a
multiple of eight), X = K + R.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .spec import Case, Inputs, KernelSpec, bytes_of

ALIGNMENT = 8
"""Elements: 16 bytes in 16-bit types, what matrix products want of every row's start."""


@dataclass(frozen=True)
class Factor:
    """One layer's LoRA factors: A (rank, K) and B (outputs, rank), any float type.

    Args:
        scaling: alpha / rank, or what PEFT made of it.
        dropout: probability of dropping an element of the layer's input, on the way into A alone.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    dropout: float = 0.0


class Base(Protocol):
    """Frozen weights of all layers together, (N, K)."""

    outputs: int
    inputs: int

    def wide(self, rank: int, dtype: torch.dtype) -> torch.Tensor:
        """[W | room] as (N, K + rank) in ``dtype``; the caller fills the room."""
        ...


class DenseBase:
    """Weights in 16 or 32 bits, kept side by side with room for sB."""

    def __init__(self, weights: Sequence[torch.Tensor], rank: int) -> None:
        self.outputs = sum(len(weight) for weight in weights)
        self.inputs = weights[0].shape[1]
        self.rank = rank
        self.wide_NX = weights[0].new_zeros(self.outputs, self.inputs + rank)
        start = 0
        for weight in weights:
            self.wide_NX[start : start + len(weight), : self.inputs] = weight
            start += len(weight)

    def views(self, outputs: Sequence[int]) -> list[torch.Tensor]:
        """The layers' own weights (n, K), as views."""
        return list(self.wide_NX[:, : self.inputs].split(list(outputs)))

    def wide(self, rank: int, dtype: torch.dtype) -> torch.Tensor:
        return self.wide_NX[:, : self.inputs + rank]


class ExpandedBase:
    """Quantised weights, expanded for each product into a workspace that all layers share.

    Args:
        parts: for each layer its outputs and a function that writes its weight into an (n, K) view.
        workspace: gives a buffer of (rows, columns) in a type; its content lives until the next call.
    """

    def __init__(
        self,
        parts: Sequence[tuple[int, Callable[[torch.Tensor], None]]],
        inputs: int,
        workspace: Callable[[int, int, torch.dtype], torch.Tensor],
    ) -> None:
        self.parts, self.inputs, self.workspace = list(parts), inputs, workspace
        self.outputs = sum(outputs for outputs, _ in self.parts)

    def wide(self, rank: int, dtype: torch.dtype) -> torch.Tensor:
        wide_NX = self.workspace(self.outputs, self.inputs + rank, dtype)
        start = 0
        for outputs, expand in self.parts:
            expand(wide_NX[start : start + outputs, : self.inputs])
            start += outputs
        if rank:
            wide_NX[:, self.inputs :].zero_()
        return wide_NX


def padded_rank(ranks: Sequence[int]) -> int:
    """The ranks' sum, rounded up so that rows of x' stay aligned."""
    return -(-sum(ranks) // ALIGNMENT) * ALIGNMENT


def with_room(like: torch.Tensor, width: int, factors: Sequence[Factor | None]) -> torch.Tensor:
    """An uninitialised (T, width + R) for x and t beside one another, T and type as of ``like``."""
    return like.new_empty(len(like), width + padded_rank([len(f.a) for f in factors if f is not None]))


def stacked_a(factors: Sequence[Factor | None], inputs: int, like: torch.Tensor) -> torch.Tensor:
    """All A beneath one another, (R, K) in the type of ``like``; rows of padding are zero."""
    given = [factor for factor in factors if factor is not None]
    rank = padded_rank([len(factor.a) for factor in given])
    a_RK = like.new_empty(rank, inputs)
    start = 0
    for factor in given:
        a_RK[start : start + len(factor.a)].copy_(factor.a)
        start += len(factor.a)
    if start < rank:
        a_RK[start:].zero_()
    return a_RK


def _blocks(
    outputs: Sequence[int], factors: Sequence[Factor | None]
) -> list[tuple[int, slice, slice, Factor]]:
    """Each adapted layer's number, and the rows and columns of its sB in (N, R)."""
    blocks, row, column = [], 0, 0
    for index, (size, factor) in enumerate(zip(outputs, factors, strict=True)):
        if factor is not None:
            rank = len(factor.a)
            blocks.append((index, slice(row, row + size), slice(column, column + rank), factor))
            column += rank
        row += size
    return blocks


def _fill_scaled_b(room_NR: torch.Tensor, outputs: Sequence[int], factors: Sequence[Factor | None]) -> None:
    for _, rows, columns, factor in _blocks(outputs, factors):
        torch.mul(factor.b, factor.scaling, out=room_NR[rows, columns])


def _mm_fp32(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A product of 16-bit matrices accumulated and returned in fp32; wider types stay as they are."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def dropped(x_TK: torch.Tensor, probability: float, seed: int) -> torch.Tensor:
    """Dropout that a seed repeats: zero with ``probability``, else divided by 1 - probability."""
    generator = torch.Generator(x_TK.device).manual_seed(seed)
    kept = torch.empty_like(x_TK, memory_format=torch.contiguous_format).bernoulli_(
        1 - probability, generator=generator
    )
    return x_TK * kept.div_(1 - probability)


def lora_linear_forward(
    wide_x_TX: torch.Tensor,
    base: Base,
    outputs: Sequence[int],
    factors: Sequence[Factor | None],
    *,
    bias_N: torch.Tensor | None = None,
    out_TN: torch.Tensor | None = None,
    seeds: Sequence[int] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """y (T, N) and t = x A^T (T, R), which the backward pass wants back.

    Args:
        wide_x_TX: x in the first K columns and R columns of room behind, filled here.
        base: the weights.
        outputs: of each layer, their sum is N.
        factors: of each layer; None for one without an adapter. All None: plain product, R = 0.
        bias_N: added to y.
        out_TN: written and returned as y where given, rows of any stride.
        seeds: of each layer's dropout, where any factor has one.
    """
    x_TK, t_TR = wide_x_TX[:, : base.inputs], wide_x_TX[:, base.inputs :]
    rank = t_TR.shape[1]
    if rank:
        a_RK = stacked_a(factors, base.inputs, wide_x_TX)
        if _drops(factors):
            _dropped_t(x_TK, t_TR, a_RK, outputs, factors, seeds)
        else:
            torch.mm(x_TK, a_RK.T, out=t_TR)
    wide_NX = base.wide(rank, wide_x_TX.dtype)
    _fill_scaled_b(wide_NX[:, base.inputs :], outputs, factors)
    if bias_N is not None:
        bias_N = bias_N.to(wide_x_TX.dtype)
        y_TN = torch.addmm(bias_N, wide_x_TX, wide_NX.T, out=out_TN)
    else:
        y_TN = torch.mm(wide_x_TX, wide_NX.T, out=out_TN)
    return y_TN, t_TR.contiguous()


def draw_seeds(factors: Sequence[Factor | None]) -> list[int]:
    """A seed a layer from torch's own generator, where any factor drops; else none."""
    return torch.randint(2**31, (len(factors),)).tolist() if _drops(factors) else []


def _drops(factors: Sequence[Factor | None]) -> bool:
    return any(factor is not None and factor.dropout > 0 for factor in factors)


def _dropped_t(x_TK: Any, t_TR: Any, a_RK: Any, outputs: Any, factors: Any, seeds: Sequence[int]) -> None:
    t_TR.zero_()
    for index, _, columns, factor in _blocks(outputs, factors):
        t_TR[:, columns] = dropped(x_TK, factor.dropout, seeds[index]) @ a_RK[columns].T


def lora_linear_input_gradient(
    dy_TN: torch.Tensor,
    base: Base,
    outputs: Sequence[int],
    factors: Sequence[Factor | None],
    *,
    needed: bool = True,
    seeds: Sequence[int] = (),
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """dx (T, K), rows of stride K + R, and dt = dy sB (T, R) for :func:`lora_linear_factor_gradients`.

    Args:
        dy_TN: rows of any stride.
        base: the weights.
        outputs: of each layer.
        factors: of each layer.
        needed: False leaves dx out (the first layer of a model whose embeddings are frozen).
        seeds: as in the forward pass.
    """
    rank = padded_rank([len(factor.a) for factor in factors if factor is not None])
    wide_NX = base.wide(rank, dy_TN.dtype)
    room_NR = wide_NX[:, base.inputs :]
    _fill_scaled_b(room_NR, outputs, factors)
    if not needed:
        return None, dy_TN @ room_NR
    wide_dx_TX = dy_TN @ wide_NX
    dx_TK, dt_TR = wide_dx_TX[:, : base.inputs], wide_dx_TX[:, base.inputs :]
    if not rank:
        return dx_TK, dt_TR
    a_RK = stacked_a(factors, base.inputs, dy_TN)
    if not _drops(factors):
        dx_TK.addmm_(dt_TR, a_RK)
        return dx_TK, dt_TR
    for index, _, columns, factor in _blocks(outputs, factors):
        dx_TK += dropped(dt_TR[:, columns] @ a_RK[columns], factor.dropout, seeds[index])
    return dx_TK, dt_TR


def lora_linear_factor_gradients(
    dy_TN: torch.Tensor,
    dt_TR: torch.Tensor,
    x_TK: torch.Tensor,
    t_TR: torch.Tensor,
    outputs: Sequence[int],
    factors: Sequence[Factor | None],
    *,
    seeds: Sequence[int] = (),
) -> list[torch.Tensor | None]:
    """dA_1, dB_1, dA_2, dB_2, ... in fp32; None where a layer has no adapter."""
    gradients: list[torch.Tensor | None] = [None] * (2 * len(outputs))
    if not t_TR.shape[1]:
        return gradients
    drops = _drops(factors)
    da_RK = None if drops else _mm_fp32(dt_TR.T, x_TK)
    db_NR = _mm_fp32(dy_TN.T, t_TR)
    for index, rows, columns, factor in _blocks(outputs, factors):
        if da_RK is None:
            x_dropped_TK = dropped(x_TK, factor.dropout, seeds[index])
            gradients[2 * index] = _mm_fp32(dt_TR[:, columns].T, x_dropped_TK)
        else:
            gradients[2 * index] = da_RK[columns]
        gradients[2 * index + 1] = db_NR[rows, columns] * factor.scaling
    return gradients


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TK: torch.Tensor, base: Base, outputs: Any, bias: Any, options: Any, *parameters: Any
    ) -> torch.Tensor:
        factors = factors_from(options, parameters)
        wide_x_TX = with_room(x_TK, base.inputs, factors)
        wide_x_TX[:, : base.inputs] = x_TK
        seeds = draw_seeds(factors)
        y_TN, t_TR = lora_linear_forward(wide_x_TX, base, outputs, factors, bias_N=bias, seeds=seeds)
        ctx.save_for_backward(x_TK, t_TR, *parameters)
        ctx.base, ctx.outputs, ctx.options, ctx.seeds = base, outputs, options, seeds
        return y_TN

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x_TK, t_TR, *parameters = ctx.saved_tensors
        (dy_TN,), outputs, seeds = gradients, ctx.outputs, ctx.seeds
        factors = factors_from(ctx.options, parameters)
        dx_TK, dt_TR = lora_linear_input_gradient(
            dy_TN, ctx.base, outputs, factors, needed=ctx.needs_input_grad[0], seeds=seeds
        )
        found = lora_linear_factor_gradients(dy_TN, dt_TR, x_TK, t_TR, outputs, factors, seeds=seeds)
        return dx_TK, None, None, None, None, *as_types_of(found, parameters)


def as_types_of(gradients: Sequence[torch.Tensor | None], parameters: Sequence[Any]) -> list[Any]:
    """Each gradient in its parameter's type, as autograd wants it."""
    pairs = zip(gradients, parameters, strict=True)
    return [None if gradient is None else gradient.to(parameter.dtype) for gradient, parameter in pairs]


def factors_from(options: Sequence[tuple[float, float]], parameters: Sequence[Any]) -> list[Factor | None]:
    """Factors from (scaling, dropout) a layer and the flat A_1, B_1, A_2, B_2, ... (None: no adapter)."""
    pairs = zip(parameters[0::2], parameters[1::2], strict=True)
    return [
        None if a is None else Factor(a, b, scaling, dropout)
        for (scaling, dropout), (a, b) in zip(options, pairs, strict=True)
    ]


def lora_linear_group(
    x_TK: torch.Tensor,
    base: Base,
    outputs: Sequence[int],
    factors: Sequence[Factor | None],
    *,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Several layers of one input as one differentiable node: y (T, N). Base and bias are frozen."""
    parameters = [p for factor in factors for p in ((factor.a, factor.b) if factor else (None, None))]
    options = [(factor.scaling, factor.dropout) if factor else (0.0, 0.0) for factor in factors]
    y: torch.Tensor = _LoraLinear.apply(x_TK, base, tuple(outputs), bias_N, options, *parameters)
    return y


def lora_linear(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    a_RK: torch.Tensor,
    b_NR: torch.Tensor,
    *,
    scaling: float,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """One layer with its update, weights as they lie; differentiable in x, A and B."""
    base = DenseBase([weight_NK], padded_rank([len(a_RK)]))
    return lora_linear_group(x_TK, base, [len(weight_NK)], [Factor(a_RK, b_NR, scaling)], bias_N=bias_N)


def reference(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    a_RK: torch.Tensor,
    b_NR: torch.Tensor,
    *,
    scaling: float,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = x W^T + s (x A^T) B^T + bias, as PEFT writes it."""
    update_TN = (x_TK @ a_RK.to(x_TK.dtype).T) @ b_NR.to(x_TK.dtype).T
    y_TN = torch.nn.functional.linear(x_TK, weight_NK, bias_N)
    return y_TN + update_TN * scaling


def _inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    sizes, generator = case.sizes, torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float32, device=device, generator=generator) * scale

    t, k, n, r = (sizes[name] for name in "TKNR")
    x_TK = normal(t, k + 8).to(dtype)[:, :k]
    return {
        "x_TK": x_TK,
        "weight_NK": normal(n, k, scale=k**-0.5).to(dtype),
        "a_RK": normal(r, k, scale=k**-0.5).to(dtype),
        "b_NR": normal(n, r).to(dtype),
        "scaling": 0.5,
        "bias_N": normal(n).to(dtype) if sizes.get("bias") else None,
    }


SPEC = KernelSpec(
    name="lora_linear",
    operation=lora_linear,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("small", {"T": 32, "K": 64, "N": 48, "R": 16}),
        Case("odd", {"T": 7, "K": 33, "N": 17, "R": 3, "bias": True}),
        Case("empty", {"T": 0, "K": 16, "N": 8, "R": 8}),
    ),
    timed=(
        Case("8b-gate-up", {"T": 8192, "K": 4096, "N": 28672, "R": 32}),
        Case("8b-down", {"T": 8192, "K": 14336, "N": 4096, "R": 16}),
        Case("0.6b-gate-up", {"T": 8192, "K": 1024, "N": 6144, "R": 32}),
    ),
    tolerance={torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3},
    traffic=lambda i: (
        bytes_of(i["x_TK"], i["weight_NK"]) + i["x_TK"].element_size() * len(i["x_TK"]) * len(i["weight_NK"])
    ),
    flops=lambda i: 2 * len(i["x_TK"]) * i["weight_NK"].numel(),
    differentiable=("x_TK", "a_RK", "b_NR"),
)
