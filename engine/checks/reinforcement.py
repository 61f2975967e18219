"""Before reinforcement learning starts: is there enough to learn from?"""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Finding, Fix
from .registry import PlanFacts, check

PARAMETERS, PROMPTS, STEPS = 1_500_000_000, 500, 300
"""What rewards usually take before they rise, of a task that the model solves now and then."""


@check("training", "T06")
def enough_to_learn_from(facts: PlanFacts) -> Iterator[Finding]:
    """Small models, few prompts and few steps."""
    if facts.recipe.method.kind != "grpo":
        return
    parameters, prompts = facts.model.parameters.total, facts.report.train.token_rows
    steps = facts.resolved.total_steps
    short = [
        text
        for text, there, wanted in (
            (f"{prompts:,} prompts (500 or more are usual)", prompts, PROMPTS),
            (f"{steps:,} steps (300)", steps, STEPS),
            (f"{parameters / 1e9:.2g} billion parameters (1.5)", parameters, PARAMETERS),
        )
        if there < wanted
    ]
    if short:
        yield Finding(
            id="T06",
            severity="note",
            title=f"Rewards may stay flat: {', '.join(short)}.",
            evidence={"prompts": prompts, "steps": steps, "parameters": parameters},
            fix=Fix(
                text="A small model learns by rewards what it already gets right now and then; fine-tune it "
                "on a few right answers first."
            ),
        )
