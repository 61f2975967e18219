"""Checks: what goes wrong in fine-tuning, seen early. To add one: write the generator, list it here."""

from __future__ import annotations

from ..findings import Finding
from . import (
    data_quality,
    embeddings,
    env_flags,
    environment,
    export,
    gpu_health,
    kernel_caches,
    llama,
    load,
    network,
    reinforcement,
    several_gpus,
    supervision,
    template,
    weights,
)
from .registry import Check, HasSurroundings, PlanFacts, worst_first

ENVIRONMENT: tuple[Check[HasSurroundings], ...] = (
    *environment.CHECKS,
    *gpu_health.CHECKS,
    *network.CHECKS,
    *kernel_caches.CHECKS,
    *env_flags.CHECKS,
)
"""Of a plan and of `whet doctor` alike."""

DOCTOR: tuple[Check[HasSurroundings], ...] = (
    *ENVIRONMENT,
    *network.DOCTOR,
    *several_gpus.DOCTOR,
    environment.bitsandbytes_library,
    llama.llama_runs,
)
"""What matters to a plan only where its recipe needs it."""

CHECKS: tuple[Check[PlanFacts], ...] = (
    *ENVIRONMENT,
    *several_gpus.CHECKS,
    environment.bitsandbytes_missing,
    network.weights_can_come,
    llama.gguf_tool_runs,
    supervision.nothing_supervised,
    supervision.truncated_answers,
    supervision.begin_token,
    supervision.end_token,
    template.stops_elsewhere,
    template.no_template,
    template.other_prompt,
    template.dropped_thinking,
    template.literal_markers,
    template.foreign_template,
    data_quality.max_length,
    data_quality.conversations,
    data_quality.unreadable_rows,
    data_quality.too_little,
    data_quality.leaks,
    embeddings.false_negatives,
    embeddings.prompts_there,
    embeddings.other_prompts,
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
    reinforcement.enough_to_learn_from,
    weights.ids_have_rows,
    weights.files_agree,
    export.disk_space,
    export.gguf_possible,
    export.adapter_file_possible,
    export.targets_possible,
    export.merge_possible,
)

__all__ = ["CHECKS", "DOCTOR", "Check", "HasSurroundings", "PlanFacts", "run_checks", "run_doctor"]


def run_checks(facts: PlanFacts) -> list[Finding]:
    """All findings about a plan, worst first; within a severity in the order of the list."""
    return worst_first(finding for check in CHECKS for finding in check.run(facts))


def run_doctor(facts: HasSurroundings) -> list[Finding]:
    """All findings about a machine and what lies around it, worst first."""
    return worst_first(finding for check in DOCTOR for finding in check.run(facts))
