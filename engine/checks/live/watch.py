"""One object that sees every event of a training and says what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ...findings import Finding, Fix
from ...recipe import Recipe
from ...resolve import Resolved
from ...runs.events import EvalEvent, Event, StepEvent


@dataclass(frozen=True)
class Watched:
    """What of a run does not change: its settings, and how many tokens the model can choose from."""

    recipe: Recipe
    resolved: Resolved
    vocabulary: int
    chats: bool


class Pace(NamedTuple):
    """What a step waited for, beside what its event says.

    Args:
        data_seconds: spent on fetching and collating rows.
        gpu_busy: share of time the GPU computed lately, 0 to 1; None where nobody can say.
        others: other processes on the same GPU, as ``name (pid)``.
    """

    data_seconds: float = 0.0
    gpu_busy: float | None = None
    others: tuple[str, ...] = ()


class Part(Protocol):
    """One check; yields what it finds as events come, each thing once."""

    def step(self, event: StepEvent, pace: Pace) -> Iterator[Finding]: ...
    def evaluated(self, event: EvalEvent) -> Iterator[Finding]: ...


class Watch:
    """All live checks of one attempt.

    Args:
        run: what is watched.
        earlier: events of earlier attempts up to the checkpoint that this one resumes from.
    """

    def __init__(self, run: Watched, earlier: Iterable[Event] = ()) -> None:
        from .curve import Diverging, Overfitting, Plateau, Spikes
        from .first import RESUMED, Continuity, FirstLoss
        from .reward import FlatReward
        from .speed import DataWait, SharedGpu, Slowing

        steps = [event for event in earlier if isinstance(event, StepEvent)]
        self._seen, self._first_steps = 0, RESUMED
        self.first: tuple[Part, ...] = (Continuity(steps),)
        """Checks of an attempt's first steps, which are shown no others."""
        curve: tuple[Part, ...] = (Spikes(run), Diverging(run), Plateau(run), Overfitting(run))
        if run.recipe.method.kind == "grpo":  # its loss says nothing, and steps get faster as answers shorten
            self.parts: tuple[Part, ...] = (FlatReward(run), DataWait(), SharedGpu())
            return
        if run.recipe.method.kind == "sft":  # what a first loss can be is known of language models alone
            self.first = (FirstLoss(run), *self.first)
        self.parts = (*curve, DataWait(), Slowing(), SharedGpu())
        for event in earlier:  # what was found then has been said
            for part in curve:
                if isinstance(event, StepEvent):
                    list(part.step(event, Pace()))
                elif isinstance(event, EvalEvent):
                    list(part.evaluated(event))

    def step(self, event: StepEvent, pace: Pace | None = None) -> list[Finding]:
        """What this step shows."""
        seen, parts = pace or Pace(), self.parts
        if self._seen < self._first_steps:
            self._seen += 1
            parts = (*self.first, *parts)
        return [finding for part in parts for finding in part.step(event, seen)]

    def evaluated(self, event: EvalEvent) -> list[Finding]:
        """What this evaluation shows."""
        return [finding for part in self.parts for finding in part.evaluated(event)]


def gradients(dead: Sequence[str], trained: int) -> list[Finding]:
    """L09 after the first backward pass: trained parameters that got no gradient.

    Args:
        dead: names of those that are zero throughout; A matrices of fresh adapters, which start so, left out.
        trained: how many were looked at.
    """
    if not dead:
        return []
    everything = len(dead) == trained
    what = "no trained parameter" if everything else f"{len(dead)} of {trained} trained parameters"
    verb = "got a gradient" if everything else "got no gradient"
    return [
        Finding(
            id="L09",
            severity="error" if everything else "warning",
            title=f"After the first step {what} {verb}: what is trained is not on the way to the loss.",
            evidence={"without_gradient": list(dead[:10]), "count": len(dead), "trained": trained},
            fix=Fix(
                text="Adapt layers of the language model itself.",
                patch={"adapter.target_modules": "all-linear"},
            ),
        )
    ]
