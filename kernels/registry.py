"""All kernels, one file each."""

from __future__ import annotations

from . import (
    adamw,
    adamw_8bit,
    attention,
    contrastive,
    decode_attention,
    decode_linear,
    dropout,
    fp8,
    gelu,
    gelu_low_rank,
    glu,
    glu_low_rank,
    gradient_norm,
    grouped_gemm,
    int8,
    l2_normalize,
    layer_norm,
    linear_cross_entropy,
    lora_linear,
    moe_routing,
    nf4,
    nf4_fp8,
    rms_norm,
    rope,
    segment_pool,
    selective_log_softmax,
    weighted_glu,
)
from .spec import KernelSpec

_MODULES = (
    rms_norm,
    layer_norm,
    rope,
    glu,
    glu_low_rank,
    gelu,
    gelu_low_rank,
    attention,
    decode_attention,
    decode_linear,
    fp8,
    nf4,
    nf4_fp8,
    int8,
    lora_linear,
    linear_cross_entropy,
    selective_log_softmax,
    l2_normalize,
    contrastive,
    segment_pool,
    dropout,
    adamw,
    adamw_8bit,
    gradient_norm,
    grouped_gemm,
    moe_routing,
    weighted_glu,
)

SPECS: dict[str, KernelSpec] = {
    spec.name: spec
    for spec in (
        *(module.SPEC for module in _MODULES),
        glu_low_rank.BACKWARD_SPEC,
        fp8.TRANSPOSE_SPEC,
        fp8.MATMUL_SPEC,
    )
}
