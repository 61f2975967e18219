"""Proof that an adapter GGUF over its base's GGUF is what PEFT computes. Light: imports no torch."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

from ...hardware import usable_cores
from ..gguf.native import Progress, patience_for, run_native
from ..probe_corpus import probe_texts
from ..smoke import SCRATCH, SMALL_FILE
from ..verdict import Proof, Verdict, conclude
from .memory import DEFAULT_SHARE

GATE = 1e-4
"""Mean KL in nats. Over an f16 base right adapters measured below 1e-5, over an f32 one below 1e-9; a missing
permutation or a wrong alpha is of the size of what training moved."""
VISIBLE = 0.1
"""Part of what training moved that the difference may be; above it, too little was trained to tell."""
POSITIONS = 256


def prove_adapter(
    base: Path,
    base_gguf: Path,
    adapter: Path,
    adapter_gguf: Path,
    held_out: list[dict[str, Any]] | None = None,
    progress: Progress | None = None,
    share: float = DEFAULT_SHARE,
) -> Verdict:
    """The verdict on an adapter file, saved beside it as ``<name>.verdict.json``.

    Args:
        base: folder of the model the adapter belongs to.
        base_gguf: the same as f16 or f32.
        adapter: PEFT's folder.
        adapter_gguf: the file to prove.
        held_out: rows whose ``input_ids`` are compared first.
        progress: (parts done, parts in all).
        share: of the free memory, that the proof may take.

    Raises:
        WhetError: what keeps PEFT or llama.cpp from loading them.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=base_gguf.parent) as work:
        request = {
            "base": str(base),
            "adapter": str(adapter),
            "work": work,
            "texts": [text for text in probe_texts() if len(text) > 20],
            "rows": [row["input_ids"] for row in held_out or [] if row.get("input_ids")],
            "positions": POSITIONS,
            "share": share,
        }
        package = "whet.engine.export.targets"
        computed = run_native(f"{package}.adapter_reference", request, patience=patience_for(base))
        threads = 1 if base_gguf.stat().st_size < SMALL_FILE else usable_cores()
        files = {"base": str(base_gguf), "adapter": str(adapter_gguf), "work": work, "threads": threads}
        measured = run_native(f"{package}.adapter_process", files, progress, patience_for(base_gguf))
    return conclude(judge_adapter(measured | computed), adapter_gguf, "adapter", started)


def judge_adapter(measured: dict[str, Any]) -> Proof:
    """What was measured, as one proof."""
    mean, moved = measured["mean"], measured["moved"]
    evidence = {**measured, "gate": GATE}
    summary = f"Mean KL from PEFT is {mean:.1e} nat over {measured['positions']} positions"
    if not math.isfinite(mean) or mean > GATE:
        fix = "Write it again from the same run: `whet export RUN --adapter-gguf`; or export a merged GGUF."
        return _proof("fail", f"{summary}, above {GATE:.0e}.", evidence, fix)
    if mean > VISIBLE * moved:
        little = f"{summary}, and the adapter moves the base by {moved:.1e}: too little to tell a mistake."
        return _proof("warn", little, evidence, "Train longer or with a higher learning_rate.")
    return _proof("pass", f"{summary} (gate {GATE:.0e}); training moved {moved:.1e}.", evidence, "")


def _proof(status: Any, summary: str, evidence: dict[str, Any], fix: str) -> Proof:
    return Proof(name="adapter", status=status, summary=summary, evidence=evidence, fix=fix)
