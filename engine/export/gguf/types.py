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
    needs_importance: bool = False
    """llama.cpp refuses it, or ruins a model with it, unless it is given an importance matrix."""
    ends: str | None = None
    """Type of the embedding and the output head, where it is not llama.cpp's own choice."""

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
        GGUFType("q2_k_l", 10, 3.68, ends="q8_0"),
        GGUFType("iq4_nl", 25, 4.68),
        GGUFType("iq4_xs", 30, 4.46),
        GGUFType("iq3_m", 27, 3.76),
        GGUFType("iq3_s", 26, 3.67),
        GGUFType("iq3_xs", 22, 3.50, needs_importance=True),
        GGUFType("iq3_xxs", 23, 3.25, needs_importance=True),
        GGUFType("q2_k_s", 21, 2.97, needs_importance=True),
        GGUFType("iq2_m", 29, 2.93, needs_importance=True),
        GGUFType("iq2_s", 28, 2.74, needs_importance=True),
        GGUFType("iq2_xs", 20, 2.59, needs_importance=True),
        GGUFType("iq2_xxs", 19, 2.38, needs_importance=True),
        GGUFType("iq1_m", 31, 2.15, needs_importance=True),
        GGUFType("iq1_s", 24, 2.00, needs_importance=True),
        # Three values a weight: only for models that were trained to have no others.
        GGUFType("tq2_0", 37, 2.5),
        GGUFType("tq1_0", 36, 2.1),
    )
}
ALIASES = {
    "not_quantized": "f16",
    "none": "f16",
    "fast_quantized": "q8_0",
    "quantized": "q4_k_m",
    "q3_k": "q3_k_m",
    "q3_k_xs": "iq3_xs",
    "q4_k": "q4_k_m",
    "q5_k": "q5_k_m",
}
"""Other tools' names."""
USUAL = ("q4_k_m", "q8_0", "f16")
USUAL_FOR_EMBEDDINGS = ("f16", "q8_0")
"""Vectors suffer more than answers do: MiniLM keeps a cosine of 0.9996 in q8_0 and 0.990 in q4_k_m."""


def find_type(name: str) -> GGUFType:
    """The type called ``name`` (any case, ``-`` for ``_``, or one of :data:`ALIASES`).

    Raises:
        WhetError: ``gguf.unknown_type`` with the nearest names.
    """
    key = name.lower().replace("-", "_")
    key = ALIASES.get(key, key)
    if key in GGUF_TYPES:
        return GGUF_TYPES[key]
    near = difflib.get_close_matches(key, GGUF_TYPES, n=3, cutoff=0.5)
    raise WhetError(
        "gguf.unknown_type",
        f"{name!r} is not a GGUF type.",
        f"Did you mean {' or '.join(near)}?" if near else f"Use one of: {', '.join(GGUF_TYPES)}.",
    )


def importance_missing(kind: GGUFType) -> WhetError:
    """What to say where ``kind`` is to have an importance matrix and there is nothing to compute it from."""
    return WhetError(
        "gguf.needs_importance_matrix",
        f"There are no rows to compute the importance matrix of GGUF type {kind.name} from.",
        "Name rows like those the model will see with --imatrix FILE (imatrix=FILE in Python), as text, "
        "JSONL, CSV, Parquet or a matrix by llama-imatrix (.gguf). The export of a run has rows of its own; "
        "q2_k and iq3_s are the smallest types that do without.",
    )


def check_types(names: Iterable[str]) -> list[GGUFType]:
    """All of ``names`` as types, without repetition and in order. Raises as :func:`find_type`."""
    return list(dict.fromkeys(find_type(name) for name in names))
