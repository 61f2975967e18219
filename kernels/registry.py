"""All kernels, one file each."""

from __future__ import annotations

from .spec import KernelSpec

SPECS: dict[str, KernelSpec] = {spec.name: spec for spec in ()}
