"""T08: evaluation that keeps every logit, as `compute_metrics` makes it. Light."""

from __future__ import annotations

from dataclasses import dataclass

from ..findings import Finding, Fix

GIB = 2**30
MOST = 0.8
"""Of the free memory, which logits may take."""


@dataclass(frozen=True)
class PredictionFacts:
    """An evaluation that returns predictions.

    Args:
        rows: held out.
        batch: of them that go through at once.
        longest: tokens of the longest row.
        vocabulary: logits a token.
        width: bytes of a logit as it is kept, 4 or 2.
        accumulation: batches after which logits move to host memory; None: they stay on the device.
        device_free: bytes free where the model is.
        host_free: bytes free in host memory; the same memory on a CPU.
        on_cpu: the model is on the CPU.
    """

    rows: int
    batch: int
    longest: int
    vocabulary: int
    width: int
    accumulation: int | None
    device_free: int
    host_free: int
    on_cpu: bool


def predictions_fit(facts: PredictionFacts) -> Finding | None:
    """What the logits need against what is free: on the device until they move, on the host for all rows."""
    a_row = facts.longest * facts.vocabulary * facts.width
    held = facts.rows if facts.accumulation is None else min(facts.rows, facts.batch * facts.accumulation)
    device, host = held * a_row, facts.rows * a_row
    full = {"GPU": device > MOST * facts.device_free and not facts.on_cpu,
            "host": host > MOST * facts.host_free}  # fmt: skip
    if not any(full.values()):
        return None
    where = next(name for name, is_full in full.items() if is_full)
    needed, free = (device, facts.device_free) if where == "GPU" else (host, facts.host_free)
    keep = (
        "keep only what the metric needs with preprocess_logits_for_metrics (e.g. the argmax), or drop "
        "compute_metrics: the loss alone needs no logits"
    )
    text = f"Evaluate in the compute type, few rows at once, and {keep}."
    return Finding(
        id="T08",
        severity="warning",
        title=f"compute_metrics keeps all logits of {facts.rows:,} rows: {needed / GIB:.1f} GiB of {where} "
        f"memory, {free / GIB:.1f} are free.",
        evidence={
            "rows": facts.rows,
            "longest": facts.longest,
            "vocabulary": facts.vocabulary,
            "device_gib": round(device / GIB, 2),
            "host_gib": round(host / GIB, 2),
        },
        fix=Fix(
            text=text,
            command="bf16_full_eval=True, per_device_eval_batch_size=2, eval_accumulation_steps=4, "
            "preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1)",
        ),
    )
