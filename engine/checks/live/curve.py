"""The loss curve: spikes, divergence, a plateau, overfitting.

The bands are those people go by for chat fine-tuning: a training loss of 0.5 to 1.0 is healthy, below 0.2 a
model recites its rows. What helps against overfitting: fewer epochs, a lower rate, more weight decay; against
a plateau: more epochs, a larger rank and alpha, better rows.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from statistics import fmean, median, pvariance
from typing import Any

from ...findings import Finding, Fix
from ...recipe import Recipe
from ...runs.events import EvalEvent, StepEvent
from .watch import Pace, Watched

WINDOW = 20
"""Steps that a loss is compared with."""
SPIKE, SPIKE_SPREADS, SPIKE_GRADIENT = 1.0, 8.0, 5.0
"""A spike is so many nats, and so many deviations, above the median, with a gradient so many times longer."""
QUIET_STEPS = 100
"""Between two reports of spikes."""
SHORT = 10
RISE, RISE_SHARE = 0.5, 1.3
"""Divergence: the median of ten steps is so many nats, and so many times, above the lowest such median."""
FIRST_RISE, FIRST_SHARE = 2.0, 2.0
"""The same against the loss before the first update, which is one batch's alone."""
PLATEAU_STEPS, PLATEAU_SHARE, PLATEAU_LOSS = 60, 0.01, 1.0
PLATEAU_NOISE = 0.03
"""Differences up to here are none where two standard errors of uneven batches are as large."""
RECITED = 0.2
WORSE = 0.02
"""A held-out loss counts as risen when it is this share above the lowest, twice."""
USUAL_RATE = 2e-4
"""Learning rate of a LoRA adapter that is rarely wrong."""


def lower_rate(recipe: Recipe, factor: float) -> dict[str, Any]:
    """A patch: the learning rate divided, at most the usual one; clipping where it was off."""
    training = recipe.training
    rate = min(training.learning_rate / factor, USUAL_RATE)
    patch: dict[str, Any] = {"training.learning_rate": float(f"{rate:.2g}")}
    if not training.max_grad_norm:
        patch["training.max_grad_norm"] = 1.0
    return patch


class Spikes:
    """T01: one step's loss and gradient far above those before it."""

    def __init__(self, run: Watched) -> None:
        self.run = run
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.norms: deque[float] = deque(maxlen=WINDOW)
        self.quiet_until = 0

    def step(self, event: StepEvent, pace: Pace) -> Iterator[Finding]:
        # The median is no less than the least of them, which is found without sorting.
        high = len(self.losses) == WINDOW and event.loss - min(self.losses) > SPIKE
        if high and event.step >= self.quiet_until:
            usual, norm = median(self.losses), median(self.norms)
            spread = 1.4826 * median(abs(loss - usual) for loss in self.losses)
            above = event.loss - usual
            if above > max(SPIKE, SPIKE_SPREADS * spread) and event.grad_norm > SPIKE_GRADIENT * norm:
                self.quiet_until = event.step + QUIET_STEPS
                yield Finding(
                    id="T01",
                    severity="warning",
                    title=f"The loss of step {event.step} jumped to {event.loss:.2f} from about {usual:.2f}.",
                    evidence={
                        "step": event.step,
                        "median": round(usual, 4),
                        "grad_norm": round(event.grad_norm, 3),
                        "usual_grad_norm": round(norm, 3),
                    },
                    fix=Fix(
                        text="Lower the learning rate, and look at the rows of this step.",
                        patch=lower_rate(self.run.recipe, 3),
                    ),
                )
        if math.isfinite(event.loss) and math.isfinite(event.grad_norm):
            self.losses.append(event.loss)
            self.norms.append(event.grad_norm)

    def evaluated(self, event: EvalEvent) -> Iterator[Finding]:
        yield from ()


class Diverging:
    """T07: ten steps in a row far above the best ten."""

    def __init__(self, run: Watched) -> None:
        self.run = run
        self.losses: deque[float] = deque(maxlen=SHORT)
        self.first, self.best, self.said = math.inf, math.inf, False

    def step(self, event: StepEvent, pace: Pace) -> Iterator[Finding]:
        self.losses.append(event.loss)
        if event.step == 1:
            self.first = event.loss
        if len(self.losses) < SHORT or self.said:
            return
        now = median(self.losses)
        if now < self.best:
            self.best = now
        if now > self.first + FIRST_RISE and now > FIRST_SHARE * self.first:
            self.best = min(self.best, self.first)
        if now > self.best + RISE and now > RISE_SHARE * self.best:
            self.said = True
            yield Finding(
                id="T07",
                severity="error",
                title=f"The loss diverges: {now:.2f} over the last {SHORT} steps, after {self.best:.2f}.",
                evidence={
                    "step": event.step,
                    "median": round(now, 4),
                    "best_median": round(self.best, 4),
                    "learning_rate": event.learning_rate,
                },
                fix=Fix(
                    text="Lower the learning rate; resume from a checkpoint before the rise, or start anew.",
                    patch=lower_rate(self.run.recipe, 3),
                ),
            )

    def evaluated(self, event: EvalEvent) -> Iterator[Finding]:
        yield from ()


class Plateau:
    """T07: chats on which the loss stays where it began, above the healthy band."""

    def __init__(self, run: Watched) -> None:
        self.run = run
        self.first: list[float] = []
        self.last: deque[float] = deque(maxlen=WINDOW)
        warmup, total = run.resolved.warmup_steps, run.resolved.total_steps
        self.warmup, self.looks_at = warmup, max(warmup + PLATEAU_STEPS, total // 3)
        self.said = not run.chats

    def step(self, event: StepEvent, pace: Pace) -> Iterator[Finding]:
        if self.said or event.step <= self.warmup:
            return
        if len(self.first) < WINDOW:
            self.first.append(event.loss)
        self.last.append(event.loss)
        if event.step < self.looks_at:
            return
        self.said = True  # looked at once
        began, now = fmean(self.first), fmean(self.last)
        error = math.sqrt((pvariance(self.first) + pvariance(self.last)) / WINDOW)
        alike = max(PLATEAU_SHARE * began, min(2 * error, PLATEAU_NOISE * began))
        if now > PLATEAU_LOSS and abs(began - now) < alike:
            yield Finding(
                id="T07",
                severity="warning",
                title=f"The loss stays at {now:.2f} after {event.step} steps; chats come to 0.5 to 1.0.",
                evidence={"first": round(began, 4), "now": round(now, 4), "step": event.step},
                fix=Fix(
                    text="Give it more to learn with, and look at the rows.",
                    patch=self._more(),
                ),
            )

    def _more(self) -> dict[str, Any]:
        recipe = self.run.recipe
        if recipe.adapter.kind == "none":
            return {"training.learning_rate": float(f"{3 * recipe.training.learning_rate:.2g}")}
        if recipe.training.learning_rate < USUAL_RATE / 2:
            return {"training.learning_rate": USUAL_RATE}
        return {"adapter.rank": 2 * recipe.adapter.rank, "adapter.alpha": 2 * recipe.adapter.alpha}

    def evaluated(self, event: EvalEvent) -> Iterator[Finding]:
        yield from ()


class Overfitting:
    """T07: the held-out loss rises, or stays high, while the training loss falls."""

    def __init__(self, run: Watched) -> None:
        self.run = run
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.best: EvalEvent | None = None
        self.worse = 0
        self.at_best = math.inf
        """Training loss when the held-out one was lowest; before the first step, the first step's."""
        self.held_out = run.resolved.eval_every is not None
        self.said = False

    def step(self, event: StepEvent, pace: Pace) -> Iterator[Finding]:
        if not self.losses and math.isinf(self.at_best):
            self.at_best = event.loss
        self.losses.append(event.loss)
        if self.held_out or self.said or len(self.losses) < WINDOW:
            return
        if fmean(self.losses) < RECITED:
            self.said = True
            yield Finding(
                id="T07",
                severity="note",
                title=f"The training loss is {fmean(self.losses):.2f}, and no rows are held out: whether it "
                "learns or recites cannot be told.",
                evidence={"step": event.step, "recites_below": RECITED},
                fix=Fix(text="Hold rows out.", patch={"data.eval_fraction": 0.1}),
            )

    def evaluated(self, event: EvalEvent) -> Iterator[Finding]:
        training = fmean(self.losses) if self.losses else math.inf
        if self.best is None or event.loss < self.best.loss:
            self.best, self.worse, self.at_best = event, 0, training
        elif event.loss > self.best.loss * (1 + WORSE) and training < self.at_best:
            self.worse += 1
        gap = training < RECITED and event.loss > RECITED + 2 * training + WORSE and event.step > 0
        if self.said or not (self.worse >= 2 or (gap and self.worse)):
            return
        self.said = True
        yield Finding(
            id="T07",
            severity="warning",
            title=f"It overfits: held-out loss {event.loss:.3f} at step {event.step}, {self.best.loss:.3f} "
            f"at step {self.best.step}, while the training loss fell to {training:.3f}.",
            evidence={
                "held_out": round(event.loss, 4),
                "best": round(self.best.loss, 4),
                "best_step": self.best.step,
                "training": round(training, 4),
            },
            fix=Fix(
                text="End where the held-out loss was lowest; a lower rate, more weight decay or half of "
                "alpha help too.",
                patch=self._shorter(max(1, self.best.step)),
            ),
        )

    def _shorter(self, step: int) -> dict[str, Any]:
        """To the best step: by early stopping, and by fewer epochs where they can say it."""
        training, resolved = self.run.recipe.training, self.run.resolved
        if training.max_steps is not None:
            return {"training.max_steps": step, "eval.early_stopping": 2}
        epochs = max(0.01, round(step / resolved.steps_per_epoch, 2))
        return {"training.epochs": epochs, "eval.early_stopping": 2}
