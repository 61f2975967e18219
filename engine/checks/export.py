"""Export: what would fail only after hours of training, probed before it."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Finding, Fix
from .registry import PlanFacts, check

GIB = 2**30
UNDOABLE = ("nf4", "fp4", "int8")
SPARE = 0.05
"""Share of the free disk that stays free."""


@check("export", "X02")
def disk_space(facts: PlanFacts) -> Iterator[Finding]:
    """Checkpoints and exports against the free space of whet's home."""
    needed, free = sum(facts.disk_bytes.values()), facts.machine.disk_free
    if needed <= free * (1 - SPARE):
        return
    keep = facts.recipe.training.keep_checkpoints
    yield Finding(
        id="X02",
        severity="error",
        title=f"The run writes about {needed / GIB:.1f} GiB, WHET_HOME's disk has {free / GIB:.1f}.",
        evidence={
            "free_gib": round(free / GIB, 2),
            "needed_gib": {name: round(size / GIB, 2) for name, size in facts.disk_bytes.items()},
        },
        fix=Fix(
            text="Point WHET_HOME to a larger disk, or keep fewer checkpoints and export less.",
            patch={"training.keep_checkpoints": 1} if keep > 1 else {},
            command="export WHET_HOME=/path/on/a/larger/disk",
        ),
    )


@check("export", "X04")
def gguf_possible(facts: PlanFacts) -> Iterator[Finding]:
    """GGUF asked for: can this architecture and tokenizer be written, is the tool there?"""
    wanted = facts.recipe.export.gguf
    if not wanted:
        return
    without = Fix(text="Export without GGUF.", patch={"export.gguf": []})
    if facts.gguf_refusal is not None:
        yield Finding(
            id="X04",
            severity="error",
            title=f"This model cannot be exported to GGUF. {facts.gguf_refusal}",
            evidence={"model_type": facts.model.model_type, "gguf": wanted},
            fix=without,
        )
    if not facts.llama_cpp:
        yield Finding(
            id="X04",
            severity="error",
            title="GGUF export needs llama-cpp-python, which is not installed.",
            evidence={"gguf": wanted},
            fix=Fix(
                text="Install it, or export without GGUF.",
                patch=without.patch,
                command="CMAKE_ARGS=-DGGML_NATIVE=OFF pip install llama-cpp-python==0.3.36",
            ),
        )


@check("export", "X04")
def merge_possible(facts: PlanFacts) -> Iterator[Finding]:
    """Merged weights and GGUF need a base that is 16-bit, or rounded in a way that can be undone."""
    export, held = facts.recipe.export, facts.model.quantization
    if held in (None, *UNDOABLE) or not (export.merged or export.gguf):
        return
    yield Finding(
        id="X04",
        severity="error",
        title=f"The adapter cannot be merged: {facts.model.name} holds its weights quantised by {held}.",
        evidence={"quantization": held, "can_be_undone": list(UNDOABLE)},
        fix=Fix(
            text="Export the adapter alone, or train on the 16-bit original.",
            patch={"export.merged": False, "export.gguf": []},
        ),
    )
