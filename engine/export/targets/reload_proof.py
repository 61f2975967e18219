"""Proof that weights in 4 or 8 bits are the 16-bit ones, rounded: read back by transformers. Light: imports
no torch."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

from ..gguf.native import Progress, patience_for, run_native
from ..probe_corpus import probe_texts
from ..verdict import Proof, Verdict, conclude
from .memory import DEFAULT_SHARE

Format = Literal["nf4", "fp8"]
USUAL: dict[str, float] = {"nf4": 0.2, "fp8": 0.05}
"""Mean KL in nats that rounding costs at most in the models measured: 0.03 to 0.08 (nf4), 0.002 to 0.03 (fp8)
over six families at random and the demo. More is said, and no mistake of the export."""
POSITIONS = 256


def prove_reload(
    model: Path,
    written: Path,
    kind: Format,
    held_out: list[dict[str, Any]] | None = None,
    progress: Progress | None = None,
    share: float = DEFAULT_SHARE,
) -> Verdict:
    """The verdict on a folder of 4- or 8-bit weights, saved beside it as ``<folder>.verdict.json``.

    Args:
        model: the 16-bit folder it was made from.
        written: the folder to prove.
        kind: its format.
        held_out: rows whose ``input_ids`` are compared first.
        progress: (parts done, parts in all).
        share: of the free memory, that the proof may take.

    Raises:
        WhetError: what keeps transformers from loading one of the two.
    """
    started = time.monotonic()
    request = {
        "format": kind,
        "model": str(model),
        "written": str(written),
        "texts": [text for text in probe_texts() if len(text) > 20],
        "rows": [row["input_ids"] for row in held_out or [] if row.get("input_ids")],
        "positions": POSITIONS,
        "share": share,
    }
    process = "whet.engine.export.targets.reload_process"
    measured = run_native(process, request, progress, patience_for(model, model))
    return conclude(judge_reload(measured, kind), written, kind, started)


def judge_reload(measured: dict[str, Any], kind: Format) -> Proof:
    """What was measured, as one proof."""
    if "missing" in measured:
        package = measured["missing"]
        return Proof(
            name="reload",
            status="warn",
            summary=f"Not read back: transformers needs {package} for it.",
            evidence=measured,
            fix=f"pip install {package}, then export again.",
        )
    wrong, mean = measured["wrong"], measured["mean"]
    option = "--merged-4bit" if kind == "nf4" else "--fp8"
    if wrong or not math.isfinite(mean):
        named = f": {', '.join(wrong[:3])}" if wrong else ""
        return Proof(
            name="reload",
            status="fail",
            summary=f"{len(wrong)} weights that transformers reads are not the 16-bit ones, rounded{named}.",
            evidence=measured,
            fix=f"Write it again from the same run: `whet export RUN {option}`.",
        )
    summary = (
        f"transformers reads every weight as rounded; mean KL from 16 bits is {mean:.1e} nat over "
        f"{measured['positions']} positions, {measured['same_top']:.0%} of the first choices stay."
    )
    if mean > USUAL[kind]:
        lost = f"{summary} {kind} costs this model more than usual ({USUAL[kind]})."
        fix = "Serve the 16-bit weights, or FP8." if kind == "nf4" else "Serve the 16-bit weights."
        return Proof(name="reload", status="warn", summary=lost, evidence=measured, fix=fix)
    return Proof(name="reload", status="pass", summary=summary, evidence=measured)
