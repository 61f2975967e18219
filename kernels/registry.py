"""All kernels, one file each."""

from __future__ import annotations

from . import adamw, fp8, gelu, glu, linear_cross_entropy, nf4, rms_norm
from .spec import KernelSpec

SPECS: dict[str, KernelSpec] = {
    module.SPEC.name: module.SPEC for module in (rms_norm, glu, gelu, fp8, nf4, linear_cross_entropy, adamw)
}
