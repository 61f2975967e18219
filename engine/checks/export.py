"""Export: what would fail only after hours of training, probed before it."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import WhetError
from ..export.gguf.types import find_type
from ..findings import Finding, Fix
from ..models.families import Unsupported
from .registry import PlanFacts, check

GIB = 2**30
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
    """GGUF asked for: is the type known, the architecture written, the tool there?"""
    wanted = facts.recipe.export.gguf
    if not wanted:
        return
    without = Fix(text="Export without GGUF.", patch={"export.gguf": []})
    for name in wanted:
        try:
            find_type(name)
        except WhetError as error:
            yield Finding(
                id="X04",
                severity="error",
                title=error.message,
                evidence={"type": name, "code": error.code},
                fix=Fix(text=error.hint),
            )
    capability = facts.family.capabilities.get("gguf")
    if isinstance(capability, Unsupported):
        yield Finding(
            id="X04",
            severity="error",
            title=f"GGUF export of {facts.model.model_type} is not possible: {capability.reason}.",
            evidence={"model_type": facts.model.model_type},
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
