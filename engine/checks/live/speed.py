"""T09: steps that are slower than they need to be."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from statistics import median

from ...findings import Finding, Fix
from ...runs.events import EvalEvent, StepEvent
from .watch import Pace

WINDOW = 20
WARM_UP = 3
WAIT_SHARE, WAIT_SECONDS = 0.3, 0.02
"""Rows are too slow when steps wait for them this long, as a share and in seconds a step."""
SLOWER, SLOWER_SECONDS = 2.0, 0.1
"""Steps became slow when a token takes so many times as long as at best, and a step so much longer."""


class DataWait:
    """The time goes into reading rows."""

    def __init__(self) -> None:
        self.waited: deque[float] = deque(maxlen=WINDOW)
        self.whole: deque[float] = deque(maxlen=WINDOW)
        self.seen, self.said = 0, False

    def step(self, event: StepEvent, pace: Pace) -> Iterator[Finding]:
        self.seen += 1
        if self.seen <= WARM_UP or self.said:
            return
        self.waited.append(pace.data_seconds)
        self.whole.append(max(event.seconds, pace.data_seconds))
        waited = sum(self.waited)
        if len(self.waited) < WINDOW or waited / WINDOW <= WAIT_SECONDS:
            return
        whole = sum(self.whole)
        hidden = pace.gpu_busy is not None and pace.gpu_busy > 1 - WAIT_SHARE
        if waited > WAIT_SHARE * whole and not hidden:
            self.said = True
            yield Finding(
                id="T09",
                severity="warning",
                title=f"{waited / whole:.0%} of the time of a step goes into fetching its rows.",
                evidence={
                    "data_seconds_a_step": round(waited / WINDOW, 3),
                    "seconds_a_step": round(whole / WINDOW, 3),
                    "gpu_busy": pace.gpu_busy,
                },
                fix=Fix(
                    text="Keep the prepared rows on a local disk (WHET_HOME); in a script let workers fetch "
                    "them (dataloader_num_workers), and do slow transforms before training."
                ),
            )

    def evaluated(self, event: EvalEvent) -> Iterator[Finding]:
        yield from ()


class Slowing:
    """Steps take twice as long as they did."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.best, self.seen, self.said = float("inf"), 0, False

    def step(self, event: StepEvent, pace: Pace) -> Iterator[Finding]:
        self.seen += 1
        if self.seen <= WARM_UP or not event.tokens or self.said:
            return
        self.recent.append(event.seconds / event.tokens)
        if len(self.recent) < WINDOW:
            return
        usual = median(self.recent)
        if usual < self.best:
            self.best = usual
        if usual > SLOWER * self.best and (usual - self.best) * event.tokens > SLOWER_SECONDS:
            self.said = True
            whose = f": {', '.join(pace.others)}" if pace.others else ""
            yield Finding(
                id="T09",
                severity="warning",
                title=f"Steps take {usual / self.best:.1f} times as long as they did.",
                evidence={
                    "microseconds_a_token": round(usual * 1e6, 1),
                    "at_best": round(self.best * 1e6, 1),
                    "gpu_busy": pace.gpu_busy,
                    "others_on_the_gpu": list(pace.others),
                },
                fix=Fix(
                    text=f"Look for what else runs here{whose}; and for a GPU that is too hot or capped.",
                    command="nvidia-smi" if pace.gpu_busy is not None else "top",
                ),
            )

    def evaluated(self, event: EvalEvent) -> Iterator[Finding]:
        yield from ()


class SharedGpu:
    """Another process computes on the same GPU."""

    def __init__(self) -> None:
        self.said = False

    def step(self, event: StepEvent, pace: Pace) -> Iterator[Finding]:
        if pace.others and not self.said:
            self.said = True
            yield Finding(
                id="T09",
                severity="warning",
                title=f"The GPU is shared with {', '.join(pace.others)}: each slows the other down.",
                evidence={"others_on_the_gpu": list(pace.others), "gpu_busy": pace.gpu_busy},
                fix=Fix(text="Stop it, or let this run wait for a GPU of its own.", command="nvidia-smi"),
            )

    def evaluated(self, event: EvalEvent) -> Iterator[Finding]:
        yield from ()
