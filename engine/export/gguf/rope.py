"""Rotary position parameters of a config.json, old and new spelling, and what GGUF makes of them. Light."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KNOWN = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """``kind`` is one of KNOWN; ``scaling`` holds the parameters that go with it."""

    theta: float
    kind: str
    scaling: Mapping[str, Any]


def read_rope(config: Mapping[str, Any], default_theta: float) -> Rope:
    """Read ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling`` (before)."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    theta = scaling.get("rope_theta") or config.get("rope_theta") or default_theta
    return Rope(float(theta), kind, scaling)


def rope_reason(config: Mapping[str, Any]) -> str | None:
    """Why llama.cpp would rotate otherwise than this model, or None."""
    rope = read_rope(config, 10000.0)
    if rope.kind not in KNOWN:
        return f"Rope scaling of type {rope.kind!r} cannot be written yet (only {', '.join(KNOWN)})."
    partial = rope.scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        return (
            f"Only part of each head is rotated (partial_rotary_factor={partial}), which is not written yet."
        )
    if rope.kind == "yarn" and not _plain_yarn(rope.scaling):
        return f"These YaRN parameters have no GGUF counterpart: {dict(rope.scaling)}."
    return None


def _plain_yarn(scaling: Mapping[str, Any]) -> bool:
    """YaRN as llama.cpp computes it: its default ramp, and the paper's attention factor."""
    plain_ramp = (scaling.get("beta_fast") or 32) == 32 and (scaling.get("beta_slow") or 1) == 1
    extras = ("attention_factor", "mscale", "mscale_all_dim")
    return plain_ramp and scaling.get("truncate", True) and not any(scaling.get(key) for key in extras)


def llama3_factors(rope: Rope, head_dim: int) -> list[float]:
    """Divisors of the ``head_dim / 2`` rotary frequencies under Llama 3.1's long-context scaling.

    Short wavelengths stay, long ones are stretched by ``factor``, those between are interpolated linearly in
    original_context / wavelength (Llama 3 herd of models, arXiv 2407.21783, and its reference parameters).
    """
    factor = float(rope.scaling["factor"])
    low, high = float(rope.scaling["low_freq_factor"]), float(rope.scaling["high_freq_factor"])
    context = float(rope.scaling["original_max_position_embeddings"])
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope.theta ** (i / head_dim)
        smooth = min(1.0, max(0.0, (context / wavelength - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
