"""All kernels, one file each."""

from __future__ import annotations

from . import adamw, fp8, gelu, glu, int8, linear_cross_entropy, nf4, nf4_fp8, rms_norm, rope
from .spec import KernelSpec

SPECS: dict[str, KernelSpec] = {
    module.SPEC.name: module.SPEC
    for module in (rms_norm, rope, glu, gelu, fp8, nf4, nf4_fp8, int8, linear_cross_entropy, adamw)
}
