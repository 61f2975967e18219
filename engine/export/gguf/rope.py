"""Rotary position parameters of a config.json, old and new spelling, and what GGUF makes of them. Light."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rope:
    """``kind`` is transformers' ``rope_type``; ``scaling`` holds the parameters that go with it.

    Args:
        partial: share of each head that is rotated.
        original: positions the model was trained on before its context was stretched.
        positions: of the model.
    """

    theta: float
    kind: str
    scaling: Mapping[str, Any]
    partial: float
    original: int
    positions: int


def read_rope(config: Mapping[str, Any]) -> Rope:
    """Read ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling`` (before)."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    # One set for each kind of layer (Gemma 3): the layers that see the whole text.
    scaling = scaling.get("full_attention") or scaling
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    kind = "longrope" if kind == "su" else kind
    theta = scaling.get("rope_theta") or config.get("rope_theta") or 10000.0
    partial = scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    positions = int(config.get("max_position_embeddings") or 2048)
    # transformers lets the model's own key win over the one among the parameters.
    original = config.get("original_max_position_embeddings") or scaling.get(
        "original_max_position_embeddings"
    )
    return Rope(float(theta), kind, scaling, float(partial), int(original or positions), positions)


def rope_reason(rope: Rope, known: tuple[str, ...], head_dim: int) -> str | None:
    """Why llama.cpp would rotate otherwise than this model, or None.

    Args:
        known: kinds that llama.cpp computes for the architecture; ``partial`` among them lets only a part of
            each head be rotated.
    """
    kinds = [kind for kind in known if kind != "partial"]
    if rope.kind not in kinds:
        return f"Rope scaling of type {rope.kind!r} cannot be written for it (only {', '.join(kinds)})."
    if rope.partial != 1.0 and "partial" not in known:
        return (
            f"Only part of each head is rotated (partial_rotary_factor={rope.partial}), and llama.cpp "
            "rotates whole heads for this architecture."
        )
    if rope.kind == "yarn" and not _plain_yarn(rope.scaling):
        return f"These YaRN parameters have no GGUF counterpart: {dict(rope.scaling)}."
    if rope.kind == "longrope":
        lengths = [len(rope.scaling.get(f"{name}_factor") or ()) for name in ("short", "long")]
        half = int(head_dim * rope.partial) // 2
        # The known models' configs, from before a download, leave the lists out.
        if lengths not in ([half, half], [0, 0]):
            return f"LongRoPE has {lengths[0]} short and {lengths[1]} long factors where {half} are needed."
    return None


def _plain_yarn(scaling: Mapping[str, Any]) -> bool:
    """YaRN as llama.cpp computes it: with its default ramp, which no key of the file changes."""
    plain_ramp = (scaling.get("beta_fast") or 32) == 32 and (scaling.get("beta_slow") or 1) == 1
    return plain_ramp and bool(scaling.get("truncate", True)) and scaling.get("factor") is not None


def yarn_attention_factor(scaling: Mapping[str, Any]) -> float:
    """What the model's YaRN multiplies cosine and sine by, over the paper's 1 + 0.1 ln(factor).

    llama.cpp applies the paper's by itself and multiplies it by the file's ``attn_factor``.
    """
    paper = _mscale(float(scaling["factor"]))
    explicit = scaling.get("attention_factor")
    if explicit is not None:
        return float(explicit) / paper
    mscale, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and all_dims:
        return _mscale(float(scaling["factor"]), mscale) / _mscale(float(scaling["factor"]), all_dims) / paper
    return 1.0


def _mscale(factor: float, weight: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def longrope_attention_factor(rope: Rope) -> float:
    """What LongRoPE multiplies cosine and sine by (arXiv 2402.13753), unless the model says it."""
    explicit = rope.scaling.get("attention_factor")
    if explicit is not None:
        return float(explicit)
    factor = float(rope.scaling.get("factor") or rope.positions / rope.original)
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(rope.original))


def rope_tensors(rope: Rope, head_dim: int) -> dict[str, list[float]]:
    """Divisors of the rotary frequencies that GGUF holds as tensors, by name."""
    if rope.kind == "llama3":
        return {"rope_freqs.weight": llama3_factors(rope, head_dim)}
    if rope.kind == "longrope":
        return {
            f"rope_factors_{name}.weight": [float(one) for one in rope.scaling[f"{name}_factor"]]
            for name in ("long", "short")
        }
    return {}


def llama3_factors(rope: Rope, head_dim: int) -> list[float]:
    """Divisors of the ``head_dim / 2`` rotary frequencies under Llama 3.1's long-context scaling.

    Short wavelengths stay, long ones are stretched by ``factor``, those between are interpolated linearly in
    original_context / wavelength (Llama 3 herd of models, arXiv 2407.21783, and its reference parameters).
    """
    factor = float(rope.scaling["factor"])
    low, high = float(rope.scaling["low_freq_factor"]), float(rope.scaling["high_freq_factor"])
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope.theta ** (i / head_dim)
        smooth = min(1.0, max(0.0, (rope.original / wavelength - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
