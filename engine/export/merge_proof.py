"""Proof that merged weights are base and adapter: their distributions on the same texts. Light: imports no
torch."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from .gguf.native import Progress, patience_for, run_native
from .probe_corpus import probe_texts
from .targets.memory import DEFAULT_SHARE
from .verdict import Proof, Verdict, conclude

SLACK, MAX_SLACK = 4.0, 30.0
"""How many times what rounding alone costs (PEFT's own merge, brought to the same type) the merged weights
may be away, in the mean and at a single position. Right merges measured 1.00 times."""
FLOOR, MAX_FLOOR = 1e-7, 1e-5
"""Nats below which nothing is a difference."""
COARSE_GATE = 0.02
"""Where the measurement itself is coarse: computed in bfloat16 for want of memory, or on a base that exists
rounded only, whose layers round their inputs too."""
SWALLOWED = 0.5
"""Above this share of what training moved (KL of the trained model from its base), the merge's rounding is as
large as the training."""
NOTHING = 1e-12
POSITIONS = 256


def prove_merge(
    base: Path,
    adapter: Path,
    merged: Path,
    held_out: list[dict[str, Any]] | None = None,
    progress: Progress | None = None,
    share: float = DEFAULT_SHARE,
) -> Verdict:
    """The verdict on a merged folder, saved beside it as ``<folder>.verdict.json``.

    Args:
        base: folder of the model the adapter belongs to, as merging read it.
        adapter: PEFT's folder.
        merged: the folder to prove.
        held_out: rows of :data:`whet.engine.export.smoke.HeldOut`; their tokens are compared first.
        progress: (parts done, parts in all).
        share: of the free memory, that the proof may take.

    Raises:
        WhetError: what keeps transformers or PEFT from loading one of the three.
    """
    started = time.monotonic()
    request = merge_request(base, adapter, merged, held_out) | {"share": share}
    measured = run_native("whet.engine.export.merge_process", request, progress, patience_for(base, merged))
    return conclude(judge_merge(measured), merged, "merged", started)


def merge_request(
    base: Path, adapter: Path, merged: Path, held_out: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """What :mod:`merge_process` is asked."""
    return {
        "base": str(base),
        "adapter": str(adapter),
        "merged": str(merged),
        "texts": [text for text in probe_texts() if len(text) > 20],
        "rows": [row["input_ids"] for row in held_out or [] if row.get("input_ids")],
        "positions": POSITIONS,
        "share": DEFAULT_SHARE,
    }


def judge_merge(measured: dict[str, Any]) -> Proof:
    """What was measured, as one proof."""
    mean, most, moved = measured["mean"], measured["max"], measured["moved"]
    coarse = measured["computed_in"] != "float32" or measured["rounding"] is None
    rounding = measured["rounding"] or [0.0, 0.0]
    gate = max(COARSE_GATE if coarse else FLOOR, SLACK * rounding[0])
    worst = max(1.0 if coarse else MAX_FLOOR, MAX_SLACK * rounding[1])
    evidence = {**measured, "gate": gate, "max_gate": worst}
    summary = f"Mean KL from base and adapter is {mean:.1e} nat over {measured['positions']} positions"
    wrong = not math.isfinite(mean) or mean > gate or most > worst
    if wrong or (coarse and mean > moved > COARSE_GATE / 10):
        return _proof("fail", f"{summary}, at most {most:.1e}; rounding explains {gate:.0e}.", evidence)
    if moved <= NOTHING:
        same = "The adapter changes nothing: base, trained and merged model answer alike."
        return _proof("warn", same, evidence)
    if mean > SWALLOWED * moved and not coarse:
        small = f"{summary}, as much as training moved ({moved:.1e}): {measured['dtype']} rounds it away."
        return _proof("warn", small, evidence)
    return _proof("pass", f"{summary} (gate {gate:.0e}); training moved {moved:.1e}.", evidence)


def _proof(status: Any, summary: str, evidence: dict[str, Any]) -> Proof:
    fix = (
        "" if status == "pass" else "Merge again from the same base and adapter: `whet export RUN --merged`."
    )
    return Proof(name="merge", status=status, summary=summary, evidence=evidence, fix=fix)
