"""Checks: what goes wrong in fine-tuning, seen early. To add one: write the generator, list it here."""

from __future__ import annotations

from ..findings import Finding
from . import data_quality, environment, export, load, supervision, template, weights
from .registry import Check, PlanFacts, worst_first

CHECKS: tuple[Check[PlanFacts], ...] = (
    environment.versions,
    environment.bitsandbytes_missing,
    environment.torch_without_cuda,
    supervision.nothing_supervised,
    supervision.truncated_answers,
    supervision.begin_token,
    supervision.end_token,
    template.stops_elsewhere,
    template.no_template,
    template.other_prompt,
    template.literal_markers,
    template.foreign_template,
    data_quality.max_length,
    data_quality.conversations,
    data_quality.unreadable_rows,
    data_quality.too_little,
    data_quality.leaks,
    load.weights_there,
    load.family_known,
    load.target_modules,
    load.trained_whole,
    load.slow_adapter,
    load.compute_type,
    load.narrow_type,
    load.reduced_weights,
    load.fits,
    load.fits_evaluation,
    weights.ids_have_rows,
    weights.files_agree,
    export.disk_space,
    export.gguf_possible,
    export.merge_possible,
)

__all__ = ["CHECKS", "Check", "PlanFacts", "run_checks"]


def run_checks(facts: PlanFacts) -> list[Finding]:
    """All findings about a plan, worst first; within a severity in the order of the list."""
    return worst_first(finding for check in CHECKS for finding in check.run(facts))
