"""The first steps: is the loss one a language model can have, and does a resumed run go on where it was?"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from statistics import fmean, pstdev

from ...findings import Finding, Fix
from ...runs.events import EvalEvent, StepEvent
from .watch import Pace, Watched

MARGIN = 0.5
"""nats above guessing: noise of a small first batch, and dropout."""
LOWEST = 0.3
"""nats a token; no model predicts text it was not trained on better."""
RECENT = 20
RESUMED = 3
"""Steps after a resume that are compared."""


class FirstLoss:
    """T04: worse than guessing, or too good to be true."""

    def __init__(self, run: Watched) -> None:
        self.run = run

    def step(self, event: StepEvent, pace: Pace) -> Iterator[Finding]:
        if event.step != 1 or not math.isfinite(event.loss):
            return
        guessing = math.log(self.run.vocabulary)
        evidence = {"loss": round(event.loss, 4), "guessing": round(guessing, 4), "lowest": LOWEST}
        recipe = self.run.recipe
        data = recipe.data.train if isinstance(recipe.data.train, str) else recipe.data.train[0]
        look = shlex.join(["whet", "template", recipe.model.name, data])
        if event.loss > guessing + MARGIN:
            yield Finding(
                id="T04",
                severity="error",
                title=f"The first loss is {event.loss:.2f}; guessing among {self.run.vocabulary:,} tokens "
                f"would give {guessing:.2f}.",
                evidence=evidence,
                fix=Fix(
                    text="The ids mean something else to this model: give it its own tokenizer and template, "
                    "and weights that belong together; look at a row as the model sees it.",
                    command=look,
                ),
            )
        elif event.loss < LOWEST:
            everything = recipe.method.supervise == "all" and self.run.chats
            yield Finding(
                id="T04",
                severity="warning",
                title=f"The first loss is {event.loss:.3f}, before anything was learned: the answers are in "
                "the prompts, supervision is on fixed text, or the model has seen these rows.",
                evidence=evidence,
                fix=Fix(
                    text="Put the loss on the answers only."
                    if everything
                    else "Look at rows with their supervised tokens marked; take a model that has not been "
                    "trained on them.",
                    patch={"method.supervise": "responses"} if everything else {},
                    command=None if everything else look,
                ),
            )

    def evaluated(self, event: EvalEvent) -> Iterator[Finding]:
        yield from ()


class Continuity:
    """T05: the loss after a resume beside the losses before it."""

    def __init__(self, earlier: Sequence[StepEvent]) -> None:
        self.before = [event.loss for event in earlier[-RECENT:] if math.isfinite(event.loss)]
        self.after: list[float] = []

    def step(self, event: StepEvent, pace: Pace) -> Iterator[Finding]:
        if len(self.before) < RESUMED or len(self.after) >= RESUMED:
            return
        self.after.append(event.loss)
        mean, spread = fmean(self.before), pstdev(self.before)
        now = fmean(self.after)
        if len(self.after) == RESUMED and now > mean + max(0.5, 4 * spread):
            yield Finding(
                id="T05",
                severity="error",
                title=f"After the resume the loss is {now:.3f}; before it was {mean:.3f} (± {spread:.3f}).",
                evidence={"before": round(mean, 4), "after": round(now, 4), "step": event.step},
                fix=Fix(
                    text="Stop, and start anew from the recipe: weights, optimizer or rows of the checkpoint "
                    "are not those that were trained.",
                    command="whet stop last && whet train RECIPE",
                ),
            )

    def evaluated(self, event: EvalEvent) -> Iterator[Finding]:
        yield from ()
