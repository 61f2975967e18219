"""AdamW with 8-bit block-wise moments: :mod:`.adamw` with states of :mod:`.dynamic_code`, one launch.

Each block of 256 numbers is dequantised, updated and quantised again while it is in registers; 16 bytes a
parameter are moved instead of 28. The parameters follow the moments before these are rounded.
"""

from __future__ import annotations

from typing import Any

import torch

from .adamw import (
    BLOCKS_8,
    CASES,
    FLAGS,
    TIMED,
    adamw_step,
    adamw_update,
    argument_types,
    random_inputs,
    reference,
    traffic,
)
from .adamw_triton import adamw_8bit_kernel
from .dynamic_code import BlockState, dequantize_blocks, quantize_blocks
from .spec import Case, Compilation, Inputs, KernelSpec


def adamw_8bit(
    p_P: torch.Tensor,
    g_P: torch.Tensor,
    m_P: torch.Tensor,
    m_max_B: torch.Tensor,
    v_P: torch.Tensor,
    v_max_B: torch.Tensor,
    *,
    table_G8: torch.Tensor | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, ...]:
    """:func:`.adamw.adamw` out of place with 8-bit states, given as codes and maxima.

    Returns:
        The new parameters (P,) and the maxima (B,) of the new moments. Not the codes: a number midway between
        two entries may take either. A NaN in the gradient is one in the parameter; the kernel's states stay
        finite then, and are nothing to go on with.
    """
    m, v = BlockState(m_P, m_max_B, True), BlockState(v_P, v_max_B, False)
    new_p, new_m, new_v = torch.empty_like(p_P), _empty_like(m), _empty_like(v)
    out = (new_p, new_m, new_v)
    if table_G8 is None:
        adamw_step(p_P, g_P, m, v, **settings, out=out)
    else:
        adamw_update(p_P, g_P, m, v, table_G8, out=out)
    return new_p, new_m.absmax, new_v.absmax


def _empty_like(state: BlockState) -> BlockState:
    return BlockState(torch.empty_like(state.codes), torch.empty_like(state.absmax), state.signed)


def reference_8bit(
    p_P: torch.Tensor,
    g_P: torch.Tensor,
    m_P: torch.Tensor,
    m_max_B: torch.Tensor,
    v_P: torch.Tensor,
    v_max_B: torch.Tensor,
    **settings: Any,
) -> tuple[torch.Tensor, ...]:
    """The same by :func:`.adamw.reference` from the dequantised moments."""
    m = dequantize_blocks(BlockState(m_P, m_max_B, True)).to(p_P.dtype)
    v = dequantize_blocks(BlockState(v_P, v_max_B, False)).to(p_P.dtype)
    new_p, new_m, new_v = reference(p_P, g_P, m, v, **settings)
    return new_p, quantize_blocks(new_m, signed=True).absmax, quantize_blocks(new_v, signed=False).absmax


def _inputs_8bit(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    inputs = random_inputs(case, dtype, device, seed)
    m, v = (quantize_blocks(inputs.pop(n), signed=s) for n, s in (("m_P", True), ("v_P", False)))
    return inputs | {"m_P": m.codes, "m_max_B": m.absmax, "v_P": v.codes, "v_max_B": v.absmax}


SPEC = KernelSpec(
    name="adamw_8bit",
    operation=adamw_8bit,
    reference=reference_8bit,
    inputs=_inputs_8bit,
    cases=CASES,
    timed=TIMED,
    tolerance={torch.float32: 1e-6},
    traffic=traffic,
    dtypes=(torch.float32,),
    compilations=(
        Compilation(
            adamw_8bit_kernel,
            argument_types(
                "p_in g_in m_in_max v_in_max p_out m_out_max v_out_max signed_code unsigned_code",
                "m_in v_in m_out v_out",
            ),
            {**FLAGS, "BLOCKS": BLOCKS_8},
        ),
    ),
)
