"""llama.cpp loading and running a quantised model (E05)."""

from __future__ import annotations

from collections.abc import Iterator

from ..export.gguf.native import REBUILD
from ..findings import Finding, Fix
from .registry import HasSurroundings, PlanFacts, check


@check("environment", "E05", "X04")
def llama_runs(facts: HasSurroundings) -> Iterator[Finding]:
    """A crash is named by its step and signal; one in the products of quantised weights, by the build."""
    smoke = facts.surroundings.llama_cpp
    if smoke is None or smoke.status == "works":
        return
    if smoke.status in ("missing", "unloadable"):
        yield Finding(
            id="X04",
            severity="error" if smoke.status == "unloadable" else "warning",
            title="llama.cpp does not load, so no GGUF can be written or proven."
            if smoke.status == "unloadable"
            else "llama-cpp-python is not installed, so no GGUF can be written or proven.",
            evidence={"says": smoke.log[-300:]} if smoke.log else {"installed": False},
            fix=Fix(text="Build it, portably.", command=REBUILD),
        )
        return
    amx = [name for name in smoke.features if name.startswith("AMX")]
    how = f"is ended by {smoke.signal}" if smoke.signal else "fails"
    yield Finding(
        id="E05",
        severity="error",
        title=f"llama.cpp {smoke.version} {how} on a quantised model ({smoke.step})"
        + (": this native build uses AMX, which faults on some virtual machines." if amx else "."),
        evidence={
            "step": smoke.step,
            "signal": smoke.signal,
            "built_for": smoke.features,
            "says": smoke.log[-300:],
        },
        fix=Fix(text="Build it again for any CPU (GGML_NATIVE=OFF).", command=REBUILD),
    )


@check("environment", "E05", "X04")
def gguf_tool_runs(facts: PlanFacts) -> Iterator[Finding]:
    """The same before hours of training, where GGUF files are asked for and `whet doctor` has looked."""
    if facts.recipe.export.gguf and facts.llama_cpp:
        yield from llama_runs.run(facts)
