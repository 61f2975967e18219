"""Proof that merged weights are base and adapter: their distributions on the same texts. Light: imports no
torch."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from .gguf.native import Progress, run_native
from .probe_corpus import probe_texts
from .smoke_judge import KL_GATES
from .verdict import Proof, Verdict, fingerprint, save_verdict

# Mean KL in nats that rounding to the merged weights' type may cost, with the sums in float32: a two-layer
# model of random weights measured 2e-6 in bfloat16, whatever the adapter.
GATES = {"float32": KL_GATES["f32"], "float16": KL_GATES["f16"], "bfloat16": KL_GATES["bf16"]}
COARSE_GATE = 0.02
"""Where the measurement itself is coarse: computed in bfloat16 for want of memory, or on a base that exists
rounded only, whose layers round their inputs too."""
MAX_OVER_MEAN = 100
"""A single position may be this many gates away; rounding measured 2 to 10 times the mean."""
KEPT_SHARE = 0.1
"""Of what training moved (KL of the trained model from its base) this much may be lost by merging: right
merges measured below 0.02 where training moved 1e-4 nat, a flipped sign 4, a missing part 0.1 to 1."""
ROUNDING = 1e-5
"""Below this, a loss is rounding, however little training moved."""
NOTHING = 1e-12
POSITIONS = 256


def prove_merge(
    base: Path,
    adapter: Path,
    merged: Path,
    held_out: list[dict[str, Any]] | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """The verdict on a merged folder, saved beside it as ``<folder>.verdict.json``.

    Args:
        base: folder of the model the adapter belongs to, as merging read it.
        adapter: PEFT's folder.
        merged: the folder to prove.
        held_out: rows of :data:`whet.engine.export.smoke.HeldOut`; their tokens are compared first.
        progress: (parts done, parts in all).

    Raises:
        WhetError: what keeps transformers or PEFT from loading one of the three.
    """
    started = time.monotonic()
    request = merge_request(base, adapter, merged, held_out)
    measured = run_native("whet.engine.export.merge_process", request, progress)
    verdict = Verdict.of(
        [judge_merge(measured)],
        merged,
        file_type="merged",
        seconds=round(time.monotonic() - started, 2),
        fingerprint=fingerprint(merged),
    )
    save_verdict(verdict, merged)
    return verdict


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
    }


def judge_merge(measured: dict[str, Any]) -> Proof:
    """What was measured, as one proof."""
    coarse = measured["computed_in"] != "float32" or measured["rounded_base"]
    gate = COARSE_GATE if coarse else GATES.get(measured["dtype"], GATES["bfloat16"])
    mean, most, moved = measured["mean"], measured["max"], measured["moved"]
    lost = mean / moved if moved > NOTHING else 0.0
    evidence = {**measured, "gate": gate, "lost_of_training": round(lost, 4)}
    summary = f"Mean KL from base and adapter is {mean:.1e} nat over {measured['positions']} positions"
    if "columns" in measured or not math.isfinite(mean) or mean > gate or most > MAX_OVER_MEAN * gate:
        return _proof("fail", f"{summary}, at most {most:.1e} (gate {gate:.0e}).", evidence)
    if moved <= NOTHING:
        same = "The adapter changes nothing: base, trained and merged model answer alike."
        return _proof("warn", same, evidence)
    if lost > KEPT_SHARE:
        said = f"{summary}; training itself moved only {moved:.1e}, of which {lost:.0%} is lost."
        return _proof("fail" if mean > ROUNDING else "warn", said, evidence)
    return _proof("pass", f"{summary} (gate {gate:.0e}); training moved {moved:.1e}.", evidence)


def _proof(status: Any, summary: str, evidence: dict[str, Any]) -> Proof:
    fix = (
        "" if status == "pass" else "Merge again from the same base and adapter: `whet export RUN --merged`."
    )
    return Proof(name="merge", status=status, summary=summary, evidence=evidence, fix=fix)
