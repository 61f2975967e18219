"""T06: rewards that do not tell one answer from another."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from ...findings import Finding, Fix
from ...runs.events import EvalEvent, StepEvent
from .watch import Pace, Watched

WINDOW = 20
"""Steps that wrote answers."""
FLAT = 0.95
"""Share of groups whose answers all score the same, from which on there is nothing to learn from."""
CUT = 0.5
"""Share of answers cut off that explains it."""


class FlatReward:
    """Nearly all groups score the same throughout, for long."""

    def __init__(self, run: Watched) -> None:
        self.run = run
        self.steps: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.said = False

    def step(self, event: StepEvent, pace: Pace) -> Iterator[Finding]:
        if "no_spread" not in event.metrics:
            return
        self.steps.append(event.metrics)
        flat = fmean(step["no_spread"] for step in self.steps)
        if self.said or len(self.steps) < WINDOW or flat < FLAT:
            return
        self.said = True
        reward = fmean(step["reward"] for step in self.steps)
        finished = fmean(step["finished"] for step in self.steps)
        yield Finding(
            id="T06",
            severity="warning",
            title=f"In {flat:.0%} of the groups of the last {WINDOW} steps all answers scored the same "
            f"(mean reward {reward:.3g}): nothing is learnt from them.",
            evidence={
                "no_spread": round(flat, 3),
                "reward": round(reward, 4),
                "finished": round(finished, 3),
            },
            fix=self._fix(finished),
        )

    def evaluated(self, event: EvalEvent) -> Iterator[Finding]:
        yield from ()

    def _fix(self, finished: float) -> Fix:
        method = self.run.recipe.method
        assert method.kind == "grpo"
        if finished < CUT:
            longer: dict[str, Any] = {"method.max_completion_length": 2 * method.max_completion_length}
            return Fix(text="Most answers are cut off before they end: let them be longer.", patch=longer)
        return Fix(
            text="Take prompts that the model answers right now and then, a finer reward beside this one, "
            "more answers a prompt (method.num_generations), or first fine-tune on a few right answers. "
            "Where the reward is at its best already, the run is done."
        )
