"""AdamW over one flat fp32 buffer: one launch, whatever the model.

With gradient g (after clipping), moments m and v, step t (Loshchilov and Hutter, arXiv:1711.05101):

    m = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) g g
    p = (1 - lr decay) p - lr / (1 - beta1^t)  m / (sqrt(v / (1 - beta2^t)) + eps)

Everything that depends on lr, t and the betas is folded in float64 into eight scalars
(:func:`adamw_scalars`): 1 - beta2^t taken in fp32 would be wrong by 1e-4 at the first step. They lie in a
table on the device, one row for each group of parameters, so that one launch serves groups with different
rates and a CUDA graph sees new ones. ``rows`` gives the row of each block of 256 numbers.

States are fp32, or 8-bit blocks (:mod:`.dynamic_code`): dequantised, updated and quantised again in the same
pass, the parameters being updated from the unrounded moments.

Legend: P numbers in the flat buffer, B = ceil(P / 256) blocks, G rows of the table.
"""

from __future__ import annotations

from typing import Any

import torch

from .adamw_triton import adamw_8bit_kernel, adamw_kernel
from .backend import uses_triton
from .dynamic_code import BLOCK, BlockState, dequantize_blocks, dynamic_code, in_blocks, quantize_blocks
from .spec import Case, Compilation, Inputs, KernelSpec, bytes_of

Number = float | torch.Tensor
State = torch.Tensor | BlockState
Step = tuple[torch.Tensor, State, State]

SCALARS = 8
BLOCKS_32, BLOCKS_8 = 4, 8


def adamw_scalars(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: float
) -> list[float]:
    """One row of the table: the factors of m, g, v and g g, eps, step size, decay, 1 / sqrt(1 - beta2^t).

    Args:
        step: t, counted from 1.
    """
    step_size = lr / (1 - beta1**step)
    root = (1 - beta2**step) ** -0.5
    return [beta1, 1 - beta1, beta2, 1 - beta2, eps, step_size, 1 - lr * weight_decay, root]


def device_scalars(
    lr: Number,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: Number,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The same row (1, 8) on ``device``, where ``lr`` or ``step`` may be 0-d tensors there."""
    if not (isinstance(lr, torch.Tensor) or isinstance(step, torch.Tensor)):
        row = adamw_scalars(lr, beta1, beta2, eps, weight_decay, step)
        return torch.tensor([row], device=device, dtype=dtype)
    table = torch.zeros(1, SCALARS, dtype=torch.float64, device=device)
    for column, value in enumerate((beta1, 1 - beta1, beta2, 1 - beta2, eps)):
        table[0, column].fill_(value)
    lr64, step64 = (torch.as_tensor(x, device=device).double() for x in (lr, step))
    table[0, 5] = lr64 / (1 - beta1**step64)
    table[0, 6] = 1 - lr64 * weight_decay
    table[0, 7] = (1 - beta2**step64) ** -0.5
    return table.to(dtype)


def adamw_update(
    p_P: torch.Tensor,
    g_P: torch.Tensor,
    m: State,
    v: State,
    table_G8: torch.Tensor,
    *,
    rows_B: torch.Tensor | None = None,
    clip: torch.Tensor | None = None,
    shadow_P: torch.Tensor | None = None,
    out: Step | None = None,
) -> Step:
    """One step, in place unless ``out`` is given; one launch.

    Args:
        p_P: (P,) fp32, contiguous.
        g_P: (P,) fp32.
        m: first moment, (P,) fp32 or a signed :class:`BlockState`.
        v: second moment, (P,) fp32 or an unsigned one.
        table_G8: (G, 8) fp32, rows of :func:`adamw_scalars`.
        rows_B: (B,) int32, the table's row of each block; None where all take row 0.
        clip: fp32 0-d, multiplies the gradient; it stays on the device.
        shadow_P: (P,) of any float type, written with the new parameters.
        out: where parameters and moments go instead.

    Returns:
        The new parameters, first and second moment.
    """
    result: Step = (p_P, m, v) if out is None else out
    if p_P.numel() == 0:
        return result
    if not uses_triton(p_P):
        return _update_plain(p_P, g_P, m, v, table_G8, rows_B, clip, shadow_P, result)
    quantised = isinstance(m, BlockState)
    blocks = BLOCKS_8 if quantised else BLOCKS_32
    grid = (-(-p_P.numel() // (blocks * BLOCK)),)
    options = {
        "BLOCKS": blocks,
        "BLOCK": BLOCK,
        "GROUPED": rows_B is not None,
        "CLIP": clip is not None,
        "SHADOW": shadow_P is not None,
        "num_warps": 4,
    }
    # A pointer that is not read still has to be one.
    shadow, rows, multiplier = (p_P if tensor is None else tensor for tensor in (shadow_P, rows_B, clip))
    old, new = (p_P, g_P, *_tensors(m), *_tensors(v)), tuple(t for state in result for t in _tensors(state))
    shared = (shadow, table_G8, rows, multiplier)
    if quantised:
        codes = (dynamic_code(True, p_P.device), dynamic_code(False, p_P.device))
        adamw_8bit_kernel[grid](*old, *new, *shared, *codes, p_P.numel(), **options)
    else:
        adamw_kernel[grid](*old, *new, *shared, p_P.numel(), **options)
    return result


def _tensors(state: State) -> tuple[torch.Tensor, ...]:
    return (state.codes, state.absmax) if isinstance(state, BlockState) else (state,)


def adamw_step(
    p_P: torch.Tensor,
    g_P: torch.Tensor,
    m: State,
    v: State,
    *,
    lr: Number,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: Number,
    clip: torch.Tensor | None = None,
    shadow: torch.Tensor | None = None,
    out: Step | None = None,
) -> Step:
    """:func:`adamw_update` with one set of scalars; ``lr`` and ``step`` may be 0-d device tensors."""
    table = device_scalars(lr, beta1, beta2, eps, weight_decay, step, p_P.device, p_P.dtype)
    return adamw_update(p_P, g_P, m, v, table, clip=clip, shadow_P=shadow, out=out)


def _update_plain(
    p_P: torch.Tensor,
    g_P: torch.Tensor,
    m: State,
    v: State,
    table_G8: torch.Tensor,
    rows_B: torch.Tensor | None,
    clip: torch.Tensor | None,
    shadow_P: torch.Tensor | None,
    result: Step,
) -> Step:
    table = table_G8.to(p_P.dtype)
    scalars = table[0].unbind()
    if rows_B is not None:
        scalars = table[rows_B.long()].unsqueeze(2).unbind(1)  # (B, 1), for blocks of 256 beside them
    beta1, rest1, beta2, rest2, eps, step_size, decay, root = scalars
    old = (p_P, g_P, *(s if isinstance(s, torch.Tensor) else dequantize_blocks(s) for s in (m, v)))
    p, g, m_old, v_old = old if rows_B is None else (in_blocks(x_P) for x_P in old)
    g = g if clip is None else g * clip
    m_new = (beta1 * m_old).addcmul_(rest1, g)
    v_new = (beta2 * v_old).addcmul_(rest2 * g, g)
    p_new = (p * decay).addcdiv_(m_new * -step_size, v_new.sqrt().mul_(root).add_(eps))
    for state, value in zip(result, (p_new, m_new, v_new), strict=True):
        value_P = value.flatten()[: p_P.numel()]
        if isinstance(state, BlockState):
            rounded = quantize_blocks(value_P, signed=state.signed)
            state.codes.copy_(rounded.codes)
            state.absmax.copy_(rounded.absmax)
        else:
            state.copy_(value_P)
    if shadow_P is not None:
        shadow_P.copy_(result[0])
    return result


def adamw(
    p_P: torch.Tensor,
    g_P: torch.Tensor,
    m_P: torch.Tensor,
    v_P: torch.Tensor,
    *,
    table_G8: torch.Tensor | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, ...]:
    """:func:`adamw_step` with fp32 states, out of place.

    ``table_G8`` holds the settings where these are on the device already, as in training.
    """
    out = (torch.empty_like(p_P), torch.empty_like(m_P), torch.empty_like(v_P))
    if table_G8 is None:
        adamw_step(p_P, g_P, m_P, v_P, **settings, out=out)
    else:
        adamw_update(p_P, g_P, m_P, v_P, table_G8, out=out)
    return out


def reference(
    p_P: torch.Tensor,
    g_P: torch.Tensor,
    m_P: torch.Tensor,
    v_P: torch.Tensor,
    *,
    lr: float,
    step: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    table_G8: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """AdamW as the module text has it, in the parameters' own type."""
    m_P = beta1 * m_P + (1 - beta1) * g_P
    v_P = beta2 * v_P + (1 - beta2) * g_P * g_P
    update_P = m_P / (1 - beta1**step) / ((v_P / (1 - beta2**step)).sqrt() + eps)
    return (1 - lr * weight_decay) * p_P - lr * update_P, m_P, v_P


def random_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    size = case.sizes["P"]
    p, g, m, v = torch.randn(4, size, generator=generator, device=device, dtype=dtype).unbind()
    settings: Inputs = {"lr": 1e-3, "step": 3.0, "weight_decay": 0.1}
    if case.sizes.get("table"):
        scalars = device_scalars(1e-3, 0.9, 0.999, 1e-8, 0.1, 3.0, device, torch.float32)
        settings["table_G8"] = scalars
    return {"p_P": p, "g_P": g, "m_P": 0.1 * m, "v_P": 0.01 * v.square(), **settings}


def traffic(inputs: Inputs) -> int:
    """The gradient is read, parameters and states read and written."""
    tensors = [inputs[name] for name in inputs if name.startswith(("p_", "g_", "m_", "v_"))]
    return 2 * bytes_of(*tensors) - bytes_of(inputs["g_P"])


CASES = (
    Case("small", {"P": 512}),
    Case("odd", {"P": 3001}),
    Case("table", {"P": 700, "table": True}),
    Case("one", {"P": 1}),
    Case("empty", {"P": 0}),
)
# LoRA of rank 16 on all linear layers.
TIMED = tuple(Case(n, {"P": size, "table": True}) for n, size in (("8b", 41_943_040), ("0.6b", 10_092_544)))
FLAGS = {"GROUPED": True, "CLIP": True, "SHADOW": True, "BLOCK": BLOCK}


def argument_types(floats: str, bytes_: str = "") -> dict[str, str]:
    pointers = dict.fromkeys(floats.split(), "*fp32") | dict.fromkeys(bytes_.split(), "*u8")
    more = {"shadow": "*T", "table": "*fp32", "rows": "*i32", "clip": "*fp32", "numel": "i32"}
    flags = dict.fromkeys(("BLOCKS", "BLOCK", "GROUPED", "CLIP", "SHADOW"), "constexpr")
    return pointers | more | flags


SPEC = KernelSpec(
    name="adamw",
    operation=adamw,
    reference=reference,
    inputs=random_inputs,
    cases=CASES,
    timed=TIMED,
    tolerance={torch.float32: 1e-6},
    traffic=traffic,
    dtypes=(torch.float32,),
    compilations=(
        Compilation(
            adamw_kernel,
            argument_types("p_in g_in m_in v_in p_out m_out v_out"),
            {**FLAGS, "BLOCKS": BLOCKS_32},
        ),
    ),
)
