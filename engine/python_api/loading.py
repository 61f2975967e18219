"""A script's `dtype`, `device_map` and `load_in_*` as the engine's load settings."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..errors import WhetError
from ..models.loading import DTYPES, Precision
from .load_options import Held
from .notes import say
from .precision import compute_dtype, is_bf16_supported

PLANNED_MAPS = ("auto", "sequential", "balanced", "balanced_low_0", "unsloth")
"""Maps that spread a model over devices; a model that trains sits on one."""


def load_settings(
    held: Held, dtype: torch.dtype | str | None, device_map: str | dict[str, Any] | None
) -> Precision:
    """Where the model goes, what it computes in and how its base is held.

    Args:
        held: the choice of :func:`.load_options.choose_precision`.
        dtype: a torch dtype or its name; None follows the hardware.
        device_map: a device, `{"": device}`, or one of transformers' planned maps, which mean the one
            device here.

    Raises:
        WhetError: `python_api.dtype`, `python_api.device_map`.
    """
    compute = _compute(dtype)
    base = {"nf4": "nf4", "int8": "int8", "fp8": "fp8", "trained": "fp32"}.get(held, compute)
    return Precision(device=_device(device_map), compute_dtype=compute, base_precision=base)


def _compute(dtype: torch.dtype | str | None) -> str:
    found: Any = dtype
    if dtype is None or dtype == "auto":
        found = compute_dtype()
    elif isinstance(dtype, str):
        found = DTYPES.get(dtype) or getattr(torch, dtype.removeprefix("torch."), None)
    names = {value: name for name, value in DTYPES.items()}
    if found not in names:
        raise WhetError(
            "python_api.dtype",
            f"dtype={dtype!r} is no type to compute in.",
            "Use None for the hardware's, or torch.bfloat16, torch.float16, torch.float32.",
        )
    if found == torch.bfloat16 and torch.cuda.is_available() and not is_bf16_supported():
        say("dtype=bfloat16, but this GPU has no bf16: float16 is used.")
        return "fp16"
    return names[found]


def _device(device_map: str | dict[str, Any] | None) -> str:
    default = f"cuda:{_own_gpu()}" if torch.cuda.is_available() else "cpu"
    place: Any = device_map
    if isinstance(device_map, dict):
        places = set(device_map.values())
        if len(places) != 1:
            raise WhetError(
                "python_api.device_map",
                f"device_map spreads the model over {', '.join(sorted(map(str, places)))}.",
                'Keep one device, e.g. device_map={"": 0}.',
            )
        place = places.pop()
    if place is None or place in PLANNED_MAPS:
        return default
    return f"cuda:{place}" if isinstance(place, int) else str(place)


def _own_gpu() -> int:
    """The one of those that are seen which accelerate gives a launcher's process; without a launcher, which
    some call rank -1, the first."""
    return max(0, int(os.environ.get("LOCAL_RANK", "0"))) % torch.cuda.device_count()
