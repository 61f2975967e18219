"""Proofs about what stands in the file itself: its configuration, and each tensor beside the f16 file's.

Light and pure: dictionaries in, proofs out.
"""

from __future__ import annotations

import math
from typing import Any

from .smoke_values import wrong_values
from .verdict import Proof

Measured = dict[str, Any]

# Relative error that rounding to a type leaves in a tensor (root mean square of the difference over that of
# the weights). Measured alike on trained and on random weights, see the table in docs/export.md.
ROUNDING = {
    "F32": 0.0, "F16": 0.0005, "BF16": 0.004,
    "Q8_0": 0.0056, "Q6_K": 0.018, "Q5_K": 0.037, "Q5_1": 0.039, "Q5_0": 0.044,
    "Q4_K": 0.073, "Q4_1": 0.08, "Q4_0": 0.089, "IQ4_NL": 0.078, "IQ4_XS": 0.078,
    "Q3_K": 0.155, "IQ3_S": 0.17, "IQ3_XXS": 0.21, "Q2_K": 0.3,
}  # fmt: skip
COARSE = 0.3
"""Of types that are not listed, all of two bits and less."""
TENSOR_SLACK, BLOCK_SLACK = 3.0, 6.0
"""How many times its type's error a tensor, and a block of it, may have: outliers cost more than usual."""
MOST = 0.98
"""No tensor and no block may be this far off: one of zeros is 1 away, one of another tensor 1.4."""
EXACT = 1e-6
"""Of tensors that are copied."""


def configuration(reference: Measured, measured: Measured) -> Proof:
    """Each value of the model's configuration that llama.cpp computes with."""
    wanted = reference["values"]
    if not wanted:
        return Proof(
            name="configuration",
            status="warn",
            summary="whet has no list of the values that this family's GGUF must hold.",
            fix="The other proofs stand; an epsilon or rope scaling that is a little off may slip through.",
        )
    wrong = wrong_values(measured["metadata"], wanted)
    evidence = {"values": len(wanted), "wrong": wrong}
    if not wrong:
        summary = f"{len(wanted)} values as in training: sizes, heads, epsilon, rope and its scaling."
        return Proof(name="configuration", status="pass", summary=summary, evidence=evidence)
    key, (has, wants) = next(iter(wrong.items()))
    more = f" {len(wrong) - 1} more differ." if len(wrong) > 1 else ""
    return Proof(
        name="configuration",
        status="fail",
        summary=f"{key} is {_short(has)} in the file, the model was trained with {_short(wants)}.{more}",
        evidence=evidence,
        fix="Convert again from the trained model's config.json.",
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def weights(measured: Measured) -> Proof:
    """A quantised file's tensors beside those of the f16 file."""
    found = measured["weights"]
    named = [*found["missing"], *found["added"], *found["reshaped"]]
    if named:
        kind = "lacks" if found["missing"] else "adds" if found["added"] else "has in another shape"
        return _failed(
            f"Against the f16 file this one {kind} {named[0]} ({len(named)} tensors differ).", found
        )
    worst, name, gate = _nearest_to_gate(found["types"])
    tensors = sum(entry["tensors"] for entry in found["types"].values())
    share = "" if found["share"] == 1 else f" ({found['share']:.0%} of their rows)"
    evidence = {**found, "nearest": {"tensor": name, "error": worst, "gate": gate}}
    if not worst <= gate:
        return _failed(
            f"{name} is {worst:.2g} away from the f16 file's (relative; rounding to its type leaves at most "
            f"{gate:.2g}).",
            evidence,
        )
    summary = (
        f"{tensors} tensors are those of the f16 file but for rounding{share}; nearest to its gate: {name}, "
        f"{worst:.2g} of {gate:.2g}."
    )
    return Proof(name="weights", status="pass", summary=summary, evidence=evidence)


def gates_for(kind: str) -> tuple[float, float]:
    """Most relative error of a tensor of this type, and of one block of it."""
    rounding = ROUNDING.get(kind, COARSE)
    if rounding == 0.0:
        return EXACT, EXACT
    return min(MOST, TENSOR_SLACK * rounding), min(MOST, BLOCK_SLACK * rounding)


def _nearest_to_gate(types: dict[str, dict[str, Any]]) -> tuple[float, str, float]:
    """Error, tensor and gate of what comes nearest to its gate; what is no number comes first."""
    seen = [
        (entry[error], entry[name], gate)
        for kind, entry in types.items()
        for error, name, gate in zip(("worst", "block"), ("name", "block_name"), gates_for(kind), strict=True)
    ]
    return max(seen, key=lambda one: math.inf if math.isnan(one[0]) else one[0] / one[2])


def _failed(summary: str, evidence: dict[str, Any]) -> Proof:
    return Proof(
        name="weights",
        status="fail",
        summary=summary,
        evidence=evidence,
        fix="Quantise again from the f16 file: this one was damaged, or was made from another model.",
    )
