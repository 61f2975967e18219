"""The GGUF types whet writes: their llama.cpp file-type numbers and sizes. Light: imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import WhetError


@dataclass(frozen=True)
class GGUFType:
    """One file type.

    ``bits_per_weight`` is the average over a whole decoder (mixed types such as q4_k_m keep some tensors
    larger); it serves size estimates, not accounting.
    """

    name: str
    file_type: int
    """llama.cpp's ``llama_ftype``, also the value of ``general.file_type``."""
    bits_per_weight: float

    @property
    def direct(self) -> bool:
        """Written by our converter, without quantisation."""
        return self.name in ("f32", "f16", "bf16")


GGUF_TYPES: dict[str, GGUFType] = {
    kind.name: kind
    for kind in (
        GGUFType("f32", 0, 32.0),
        GGUFType("f16", 1, 16.0),
        GGUFType("bf16", 32, 16.0),
        GGUFType("q8_0", 7, 8.5),
        GGUFType("q6_k", 18, 6.57),
        GGUFType("q5_k_m", 17, 5.70),
        GGUFType("q5_k_s", 16, 5.57),
        GGUFType("q5_1", 9, 6.0),
        GGUFType("q5_0", 8, 5.55),
        GGUFType("q4_k_m", 15, 4.89),
        GGUFType("q4_k_s", 14, 4.67),
        GGUFType("q4_1", 3, 5.13),
        GGUFType("q4_0", 2, 4.66),
        GGUFType("q3_k_l", 13, 4.30),
        GGUFType("q3_k_m", 12, 4.02),
        GGUFType("q3_k_s", 11, 3.66),
        GGUFType("q2_k", 10, 3.17),
        GGUFType("iq4_nl", 25, 4.68),
        GGUFType("iq4_xs", 30, 4.46),
        GGUFType("iq3_m", 27, 3.76),
        GGUFType("iq3_s", 26, 3.67),
    )
}

# Types llama.cpp refuses, or ruins a model with, unless it is given an importance matrix.
NEED_IMPORTANCE_MATRIX = frozenset(
    {"q2_k_s", "iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"}
)


def find_type(name: str) -> GGUFType:
    """The type called ``name`` (any case, ``-`` for ``_``).

    Raises:
        WhetError: ``gguf.unknown_type`` with the nearest names, ``gguf.needs_importance_matrix``.
    """
    key = name.lower().replace("-", "_")
    if key in GGUF_TYPES:
        return GGUF_TYPES[key]
    if key in NEED_IMPORTANCE_MATRIX:
        raise WhetError(
            "gguf.needs_importance_matrix",
            f"GGUF type {name!r} needs an importance matrix, which whet does not compute yet.",
            "Use q2_k or iq3_m, the smallest types that work without one.",
        )
    near = difflib.get_close_matches(key, GGUF_TYPES, n=3, cutoff=0.5)
    raise WhetError(
        "gguf.unknown_type",
        f"{name!r} is not a GGUF type.",
        f"Did you mean {' or '.join(near)}?" if near else f"Use one of: {', '.join(GGUF_TYPES)}.",
    )


def check_types(names: Iterable[str]) -> list[GGUFType]:
    """All of ``names`` as types, without repetition and in order. Raises as :func:`find_type`."""
    return list(dict.fromkeys(find_type(name) for name in names))
