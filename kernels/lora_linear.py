"""Linear layers that read the same input, with their LoRA updates, as one matrix product.

y_i = x W_i^T + s_i (x A_i^T) B_i^T + bias_i (LoRA, arXiv:2106.09685), for i = q, k, v, or gate, up, or one.

Where the base allows it the update rides in the base product instead of in products of its own: with
x' = [x | t], t = x A^T, and W' = [W | sB] (block-diagonal sB), y = x' W'^T. The product grows by R columns,
about one part in a hundred, and no output is read a second time. Backward, dy W' gives dx and dt = dy sB.
Where x comes without room for t, or the base does not let it ride, the update is added after; so is dt A to
dx. A caller whose next kernel reads the result anyway may ``defer`` that, and let the kernel add it.

Legend: T tokens, K inputs, N outputs of all layers together, R ranks of all layers together (padded to a
multiple of eight), X = K + R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .lora_base import Base, DenseBase, Quantized
from .lora_refresh import COMPILATIONS, Refresh
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


@dataclass(frozen=True)
class _Block:
    """Where one layer's factors lie: its number, rows of sB, columns of sB and rows of A."""

    index: int
    rows: slice
    columns: slice
    scaling: float
    dropout: float


class LoraStack:
    """Base weights of layers that read the same input, and their factors, stacked in the compute type.

    :meth:`put` says which factors are in force, and what to copy whenever they changed.

    Args:
        base: the weights.
        outputs: of each layer, their sum is N.
        ranks: of each layer's adapter, 0 without one.
        like: a tensor of the compute type on the device.
    """

    def __init__(self, base: Base, outputs: Sequence[int], ranks: Sequence[int], like: torch.Tensor) -> None:
        self.base, self.outputs, self.ranks = base, tuple(outputs), tuple(ranks)
        self.full_rank = padded_rank(ranks)
        self.a_RK = like.new_zeros(self.full_rank, base.inputs)
        room_NR = base.room(self.full_rank)
        self.sb_NR = like.new_zeros(base.outputs, self.full_rank) if room_NR is None else room_NR
        self.blocks: list[_Block] = []

    @property
    def rank(self) -> int:
        """R while any adapter is in force, else 0."""
        return self.full_rank if self.blocks else 0

    @property
    def drops(self) -> bool:
        """Whether any factor in force has dropout."""
        return any(block.dropout > 0 for block in self.blocks)

    def put(self, factors: Sequence[Factor | None]) -> list[Refresh]:
        """Put factors in force (None: that layer's is off) and say what is to be copied where."""
        self.blocks, copies, row, column = [], [], 0, 0
        for index, (size, rank, factor) in enumerate(zip(self.outputs, self.ranks, factors, strict=True)):
            rows, columns = slice(row, row + size), slice(column, column + rank)
            if factor is not None:
                self.blocks.append(_Block(index, rows, columns, factor.scaling, factor.dropout))
                copies.append(Refresh(factor.a, self.a_RK[columns], 1.0))
                copies.append(Refresh(factor.b, self.sb_NR[rows, columns], factor.scaling))
            elif rank:
                self.a_RK[columns] = 0
                self.sb_NR[rows, columns] = 0
            row, column = row + size, column + rank
        return copies

    def columns(self, outputs: slice) -> slice | None:
        """Columns of t and sB that reach some of the N outputs; None where no factors in force do."""
        reaching = [
            block.columns
            for block in self.blocks
            if block.rows.start < outputs.stop and outputs.start < block.rows.stop
        ]
        return slice(reaching[0].start, reaching[-1].stop) if reaching else None

    def with_room(self, tokens: int) -> torch.Tensor:
        """An uninitialised buffer for x and, where the update rides, t beside it."""
        return self.a_RK.new_empty(tokens, self.base.inputs + (self.rank if self.base.rides else 0))

    def draw_seeds(self) -> list[int]:
        """A seed a layer from torch's own generator, where any factor drops; else none."""
        return torch.randint(2**31, (len(self.outputs),)).tolist() if self.drops else []


def padded_rank(ranks: Sequence[int]) -> int:
    """The ranks' sum, rounded up so that rows of x' stay aligned."""
    return -(-sum(ranks) // ALIGNMENT) * ALIGNMENT


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
    x_TX: torch.Tensor,
    stack: LoraStack,
    *,
    bias_N: torch.Tensor | None = None,
    out_TN: torch.Tensor | None = None,
    seeds: Sequence[int] = (),
    quantized: Quantized | None = None,
    defer: bool = False,
    in_place: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y (T, N) and t = x A^T (T, R), which the backward pass wants back; None without adapters.

    Args:
        x_TX: x in the first K columns; R columns of room behind, filled here, if the update is to ride.
        stack: weights and factors.
        bias_N: added to y.
        out_TN: written and returned as y where given, rows of any stride.
        seeds: of each layer's dropout, where any factor has one.
        quantized: x's rows in FP8 where the kernel that made x made them too; for a base that multiplies so.
        defer: leave the update t sB^T out of y; whoever reads y adds it.
        in_place: where it rides, t is the view behind x and no copy: for callers that keep x anyway.
    """
    base = stack.base
    x_TK, rides = x_TX[:, : base.inputs], x_TX.shape[1] > base.inputs and not defer
    if not stack.rank:
        return base.forward(x_TK, None, bias_N, out_TN, quantized), None
    room_TR = x_TX[:, base.inputs :] if rides else None
    if in_place and room_TR is not None and not stack.drops:
        torch.mm(x_TK, stack.a_RK.T, out=room_TR)
        return base.forward(x_TX, stack.sb_NR, bias_N, out_TN), room_TR
    t_TR = _dropped_t(x_TK, stack, seeds) if stack.drops else x_TK @ stack.a_RK.T
    if room_TR is not None:
        room_TR.copy_(t_TR)
        return base.forward(x_TX, stack.sb_NR, bias_N, out_TN), t_TR
    y_TN = base.forward(x_TK, None, bias_N, out_TN, quantized)
    return y_TN if defer else y_TN.addmm_(t_TR, stack.sb_NR.T), t_TR


def _dropped_t(x_TK: torch.Tensor, stack: LoraStack, seeds: Sequence[int]) -> torch.Tensor:
    t_TR = x_TK.new_zeros(len(x_TK), stack.rank)
    for block in stack.blocks:
        x_dropped_TK = dropped(x_TK, block.dropout, seeds[block.index])
        t_TR[:, block.columns] = x_dropped_TK @ stack.a_RK[block.columns].T
    return t_TR


def lora_linear_input_gradient(
    dy_TN: torch.Tensor,
    stack: LoraStack,
    *,
    needed: bool = True,
    packed: bool = False,
    seeds: Sequence[int] = (),
    defer: bool = False,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """dx (T, K) and dt = dy sB (T, R) for :func:`lora_linear_factor_gradients`.

    Args:
        dy_TN: rows of any stride.
        stack: weights and factors.
        needed: False leaves dx out (the first layer of a model whose embeddings are frozen).
        packed: dx contiguous; otherwise its rows may have a stride of K + R.
        seeds: as in the forward pass.
        defer: leave dt A out of dx; whoever reads dx adds it. Not where factors have dropout.
    """
    base = stack.base
    if not stack.rank:
        return (base.backward(dy_TN, None) if needed else None), None
    if not needed:
        return None, dy_TN @ stack.sb_NR
    if base.rides and not packed:
        wide_dx_TX = base.backward(dy_TN, stack.sb_NR)
        dx_TK, dt_TR = wide_dx_TX[:, : base.inputs], wide_dx_TX[:, base.inputs :]
    else:
        dx_TK, dt_TR = base.backward(dy_TN, None), dy_TN @ stack.sb_NR
    if defer:
        return dx_TK, dt_TR
    if not stack.drops:
        return dx_TK.addmm_(dt_TR, stack.a_RK), dt_TR
    for block in stack.blocks:
        dx_part_TK = dt_TR[:, block.columns] @ stack.a_RK[block.columns]
        dx_TK += dropped(dx_part_TK, block.dropout, seeds[block.index])
    return dx_TK, dt_TR


def lora_linear_factor_gradients(
    dy_TN: torch.Tensor,
    dt_TR: torch.Tensor | None,
    x_TK: torch.Tensor,
    t_TR: torch.Tensor | None,
    stack: LoraStack,
    *,
    seeds: Sequence[int] = (),
) -> list[torch.Tensor | None]:
    """dA_1, dB_1, dA_2, dB_2, ... in fp32; None where a layer has no adapter in force."""
    gradients: list[torch.Tensor | None] = [None] * (2 * len(stack.outputs))
    if dt_TR is None or t_TR is None:
        return gradients
    da_RK = None if stack.drops else _mm_fp32(dt_TR.T, x_TK)
    db_NR = _mm_fp32(dy_TN.T, t_TR)
    scalings = {block.scaling for block in stack.blocks}
    if len(scalings) == 1 and scalings != {1.0}:  # one launch for all
        db_NR.mul_(scalings.pop())
        scalings = {1.0}
    for block in stack.blocks:
        if da_RK is None:
            x_dropped_TK = dropped(x_TK, block.dropout, seeds[block.index])
            gradients[2 * block.index] = _mm_fp32(dt_TR[:, block.columns].T, x_dropped_TK)
        else:
            gradients[2 * block.index] = da_RK[block.columns]
        db = db_NR[block.rows, block.columns]
        gradients[2 * block.index + 1] = db if scalings == {1.0} else db * block.scaling
    return gradients


def as_types_of(gradients: Sequence[torch.Tensor | None], parameters: Sequence[Any]) -> list[Any]:
    """Each gradient in its parameter's type, as autograd wants it."""
    pairs = zip(gradients, parameters, strict=True)
    return [None if gradient is None else gradient.to(parameter.dtype) for gradient, parameter in pairs]


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TK: torch.Tensor, stack: LoraStack, bias_N: torch.Tensor | None, *parameters: Any
    ) -> torch.Tensor:
        x_TX, seeds = x_TK, stack.draw_seeds()
        if stack.base.inputs <= stack.base.outputs:  # else a copy of x moves more than adding to y
            x_TX = stack.with_room(len(x_TK))
            x_TX[:, : stack.base.inputs] = x_TK
        y_TN, t_TR = lora_linear_forward(x_TX, stack, bias_N=bias_N, seeds=seeds)
        ctx.save_for_backward(x_TK, t_TR, *parameters)
        ctx.stack, ctx.seeds = stack, seeds
        return y_TN

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x_TK, t_TR, *parameters = ctx.saved_tensors
        (dy_TN,), stack, seeds = gradients, ctx.stack, ctx.seeds
        needed = ctx.needs_input_grad[0]
        dx_TK, dt_TR = lora_linear_input_gradient(dy_TN, stack, needed=needed, seeds=seeds)
        found = lora_linear_factor_gradients(dy_TN, dt_TR, x_TK, t_TR, stack, seeds=seeds)
        return dx_TK, None, None, *as_types_of(found, parameters)


def lora_linear_group(
    x_TK: torch.Tensor,
    base: Base,
    outputs: Sequence[int],
    factors: Sequence[Factor | None],
    *,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Several layers of one input as one differentiable node: y (T, N). Base and bias are frozen."""
    ranks = [0 if factor is None else len(factor.a) for factor in factors]
    stack = LoraStack(base, outputs, ranks, x_TK)
    for copy in stack.put(factors):
        copy.run()
    parameters = [p for factor in factors for p in ((factor.a, factor.b) if factor else (None, None))]
    y: torch.Tensor = _LoraLinear.apply(x_TK, stack, bias_N, *parameters)
    return y


def lora_linear(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    a_RK: torch.Tensor,
    b_NR: torch.Tensor,
    *,
    scaling: float,
    bias_N: torch.Tensor | None = None,
    base: DenseBase | None = None,
) -> torch.Tensor:
    """One layer with its update; differentiable in x, A and B.

    Args:
        x_TK: rows of any stride.
        weight_NK: frozen.
        a_RK: A.
        b_NR: B.
        scaling: of the update.
        bias_N: frozen, added.
        base: the weight where it is kept with room for the update already; else a copy is made. The room is
            written: the backward pass of a call comes before the next call.

    Raises:
        ValueError: if ``base`` has another shape than weight and update together.
    """
    rank = padded_rank([len(a_RK)])
    if base is None:
        base = DenseBase([weight_NK], rank)
    elif tuple(base.wide_NX.shape) != (wide := (len(weight_NK), weight_NK.shape[1] + rank)):
        raise ValueError(f"the base with its room is {tuple(base.wide_NX.shape)}; needed is {wide}")
    return lora_linear_group(x_TK, base, [len(weight_NK)], [Factor(a_RK, b_NR, scaling)], bias_N=bias_N)


def reference(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    a_RK: torch.Tensor,
    b_NR: torch.Tensor,
    *,
    scaling: float,
    bias_N: torch.Tensor | None = None,
    base: DenseBase | None = None,
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
    weight_NK = normal(n, k, scale=k**-0.5).to(dtype)
    b_NR, base = normal(n, r).to(dtype), None
    if sizes.get("kept"):  # with what the call writes into its room, since inputs must stay as they were
        base = DenseBase([weight_NK], padded_rank([r]))
        base.wide_NX[:, k : k + r] = 0.5 * b_NR
    return {
        "x_TK": x_TK,
        "weight_NK": weight_NK if base is None else base.views([n])[0],
        "a_RK": normal(r, k, scale=k**-0.5).to(dtype),
        "b_NR": b_NR,
        "scaling": 0.5,
        "bias_N": normal(n).to(dtype) if sizes.get("bias") else None,
        "base": base,
    }


SPEC = KernelSpec(
    name="lora_linear",
    operation=lora_linear,
    reference=reference,
    inputs=_inputs,
    cases=(
        Case("small", {"T": 32, "K": 48, "N": 64, "R": 16}),
        Case("odd", {"T": 7, "K": 33, "N": 17, "R": 3, "bias": True}),
        Case("kept", {"T": 9, "K": 24, "N": 40, "R": 5, "bias": True, "kept": True}),
        Case("empty", {"T": 0, "K": 16, "N": 8, "R": 8}),
    ),
    timed=(
        Case("8b-gate-up", {"T": 8192, "K": 4096, "N": 28672, "R": 32, "kept": True}),
        Case("8b-down", {"T": 8192, "K": 14336, "N": 4096, "R": 16, "kept": True}),
        Case("0.6b-gate-up", {"T": 8192, "K": 1024, "N": 6144, "R": 32, "kept": True}),
    ),
    tolerance={torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3},
    traffic=lambda i: (
        bytes_of(i["x_TK"], i["weight_NK"]) + i["x_TK"].element_size() * len(i["x_TK"]) * len(i["weight_NK"])
    ),
    flops=lambda i: 2 * len(i["x_TK"]) * i["weight_NK"].numel(),
    differentiable=("x_TK", "a_RK", "b_NR"),
    compilations=COMPILATIONS,
)
