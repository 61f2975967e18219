"""What a run's events add up to, kept as they come: nothing is read twice, and a resumed run has one curve.

The same for the command line's live line and the TUI's Run screen; no terminal, no numpy.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from whet.engine.api import (
    FAST_PATH,
    CheckpointEvent,
    DoneEvent,
    ErrorEvent,
    EvalEvent,
    Event,
    ExportEvent,
    Finding,
    FindingEvent,
    PhaseEvent,
    SampleEvent,
    StepEvent,
)

SMOOTHING = 20
"""Steps over which the shown loss, speed and time left are averaged."""

PHASES = {
    "wait": "waiting",
    "load": "loading the model",
    "data": "reading the data",
    "train": "training",
    "eval": "held-out loss",
    "sample": "sample answers",
    "merge": "merging",
    "export": "writing",
    "smoke": "proving",
    "push": "uploading",
}


class Pace:
    """Averages over the last steps."""

    def __init__(self) -> None:
        self.steps: deque[StepEvent] = deque(maxlen=SMOOTHING)

    def add(self, step: StepEvent) -> None:
        """Take one more step, and forget the oldest."""
        self.steps.append(step)

    @property
    def loss(self) -> float:
        """Nats per supervised token; not a number while one of the steps' losses is none."""
        return sum(step.loss for step in self.steps) / max(1, len(self.steps))

    @property
    def seconds_per_step(self) -> float:
        return sum(step.seconds for step in self.steps) / max(1, len(self.steps))

    @property
    def tokens_per_second(self) -> float:
        seconds = sum(step.seconds for step in self.steps)
        return sum(step.tokens for step in self.steps) / seconds if seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until the last step; None before the first."""
        if not self.steps:
            return None
        last = self.steps[-1]
        return max(0, last.total_steps - last.step) * self.seconds_per_step


class Curves:
    """One value a step of everything that is plotted; steps ascend."""

    COLUMNS = ("step", "loss", "learning_rate", "grad_norm", "speed", "tokens", "seconds")

    def __init__(self) -> None:
        self.step = array("d")
        self.loss = array("d")
        self.learning_rate = array("d")
        self.grad_norm = array("d")
        self.speed = array("d")
        """Tokens per second."""
        self.tokens = array("d")
        """Trained on so far; likewise the seconds of all steps so far."""
        self.seconds = array("d")
        self.not_finite: list[int] = []
        """Steps whose loss is no number."""
        self.version = 0
        """Another one after each change."""

    def __len__(self) -> int:
        return len(self.step)

    def add(self, step: StepEvent) -> None:
        """Take a step; those that it repeats or comes before are void."""
        self.version += 1
        if self.step and step.step <= self.step[-1]:
            self.cut(step.step)
        tokens = self.tokens[-1] if self.tokens else 0.0
        seconds = self.seconds[-1] if self.seconds else 0.0
        self.step.append(step.step)
        self.loss.append(step.loss)
        self.learning_rate.append(step.learning_rate)
        self.grad_norm.append(step.grad_norm)
        self.speed.append(step.tokens / step.seconds if step.seconds else 0.0)
        self.tokens.append(tokens + step.tokens)
        self.seconds.append(seconds + step.seconds)
        if not math.isfinite(step.loss):
            self.not_finite.append(step.step)

    def cut(self, first: int) -> None:
        """Forget the steps from ``first`` on."""
        self.version += 1
        place = bisect_left(self.step, first)
        for name in self.COLUMNS:
            del self.values(name)[place:]
        self.not_finite = [step for step in self.not_finite if step < first]

    def values(self, name: str) -> array[float]:
        """A column by name."""
        column: array[float] = getattr(self, name)
        return column


@dataclass
class PhaseSpan:
    """Time spent in one phase of the newest attempt, summed over its visits."""

    phase: str
    began: float
    """Seconds since the epoch at which the newest visit began."""
    spent: float = 0.0
    """Seconds of the visits that ended."""
    detail: str = ""
    share: float | None = None
    """How much of the phase is done, where it says so."""


class RunProgress:
    """All that events said of a run, as :func:`whet.engine.api.run` would tell it, up to the newest one."""

    def __init__(self) -> None:
        self.curves = Curves()
        self.pace = Pace()
        self.last: StepEvent | None = None
        self.peak_memory = 0
        """Bytes, of the newest attempt."""
        self.evals: dict[int, EvalEvent] = {}
        self.step_metrics: dict[str, dict[int, float]] = {}
        """What steps tell beside the loss: by name, the values by step."""
        self.samples: dict[tuple[int, str], SampleEvent] = {}
        """By step and prompt."""
        self.findings: list[Finding] = []
        self.checkpoints: dict[int, CheckpointEvent] = {}
        self.exports: dict[tuple[str, str], ExportEvent] = {}
        """The newest word on each file, by kind and path."""
        self.phases: dict[str, PhaseSpan] = {}
        """Of the newest attempt, in the order of their first visit."""
        self.phase: str | None = None
        self.fast_path = ""
        self.attempt = 0
        self.began: float | None = None
        """Of the newest attempt, seconds since the epoch; likewise ``newest``, of the last event."""
        self.newest = 0.0
        self.resumed_at: list[int] = []
        """First step of each later attempt that made one."""
        self.error: ErrorEvent | None = None
        self.done: DoneEvent | None = None
        self._stepped = 0  # attempt of the newest step

    def take(self, events: Iterable[Event]) -> bool:
        """Take the next events; whether there were any."""
        any_came = False
        for event in events:
            any_came = True
            if event.attempt > self.attempt:
                self._begin(event)
            self.newest = event.time
            match event:
                case StepEvent():
                    self._step(event)
                case PhaseEvent():
                    self._enter(event.phase, event)
                case EvalEvent():
                    self.evals[event.step] = event
                case SampleEvent():
                    self.samples[event.step, event.prompt] = event
                case FindingEvent():
                    if event.finding not in self.findings:
                        self.findings.append(event.finding)
                case CheckpointEvent():
                    self.checkpoints[event.step] = event
                case ExportEvent():
                    self._export(event)
                case ErrorEvent():
                    self.error = event
                    self._leave(event.time)
                case DoneEvent():
                    self.done = event
                    self._leave(event.time)
        return any_came

    def _begin(self, event: Event) -> None:
        """Another attempt: its phases and pace are its own."""
        self.attempt = event.attempt
        self.began = event.time
        self.pace = Pace()
        self.peak_memory = 0
        self.phases, self.phase = {}, None
        self.error = self.done = None

    def _step(self, event: StepEvent) -> None:
        if event.attempt > self._stepped:
            self._void(event)
            if self._stepped:
                self.resumed_at = [step for step in self.resumed_at if step < event.step] + [event.step]
            self._stepped = event.attempt
        if self.phase != "train":
            self._enter("train", event)
        self.curves.add(event)
        self.pace.add(event)
        for name, value in event.metrics.items():
            self.step_metrics.setdefault(name, {})[event.step] = value
        self.last = event
        self.peak_memory = max(self.peak_memory, event.memory_bytes)

    def _void(self, first: StepEvent) -> None:
        """What earlier attempts said of the step an attempt begins with, and of later ones, is void."""
        self.curves.cut(first.step)
        self.step_metrics = {
            name: {step: value for step, value in values.items() if step < first.step}
            for name, values in self.step_metrics.items()
        }

        def stands(said: EvalEvent | SampleEvent) -> bool:
            return said.step < first.step or said.attempt == first.attempt

        self.evals = {step: said for step, said in self.evals.items() if stands(said)}
        self.samples = {key: said for key, said in self.samples.items() if stands(said)}

    def _enter(self, phase: str, event: Event) -> None:
        if phase != self.phase:
            self._leave(event.time)
            self.phase = phase
            self.phases.setdefault(phase, PhaseSpan(phase, event.time)).began = event.time
        if isinstance(event, PhaseEvent):
            span = self.phases[phase]
            if event.detail.startswith(FAST_PATH):
                self.fast_path = event.detail.removeprefix(FAST_PATH)
            else:
                span.detail = event.detail
            span.share = event.done / event.total if event.done is not None and event.total else None

    def _leave(self, now: float) -> None:
        if self.phase is not None:
            self.phases[self.phase].spent += max(0.0, now - self.phases[self.phase].began)
            self.phase = None

    def _export(self, event: ExportEvent) -> None:
        """A file may be written and proven again; a new one is not proven yet."""
        self.exports.pop((event.kind, event.path), None)
        if event.kind != "smoke":
            self.exports.pop(("smoke", event.path), None)
        self.exports[event.kind, event.path] = event

    def spent(self, phase: str, now: float) -> float:
        """Seconds in a phase, the visit that goes on included."""
        span = self.phases[phase]
        return span.spent + (max(0.0, now - span.began) if phase == self.phase else 0.0)

    @property
    def best_eval(self) -> EvalEvent | None:
        """The lowest held-out loss."""
        finite = [one for one in self.evals.values() if math.isfinite(one.loss)]
        return min(finite, key=lambda one: one.loss, default=None)

    @property
    def metrics(self) -> dict[str, dict[int, float]]:
        """What evaluations tell beside the loss: by name, the values by step, in the order of steps."""
        found: dict[str, dict[int, float]] = {}
        for step in sorted(self.evals):
            for name, value in self.evals[step].metrics.items():
                found.setdefault(name, {})[step] = value
        return found

    @property
    def measures(self) -> dict[str, tuple[float, float]]:
        """Each metric's value at first and now: those of evaluations, then those of steps, which are averaged
        as the loss is."""
        found = {name: (values[min(values)], values[max(values)]) for name, values in self.metrics.items()}
        for name, values in self.step_metrics.items():
            if values and name not in found:
                told = list(values.values())
                found[name] = _mean(told[:SMOOTHING]), _mean(told[-SMOOTHING:])
        return found

    @property
    def prompts(self) -> list[str]:
        """In the order they were first asked."""
        return list(dict.fromkeys(prompt for _, prompt in self.samples))

    @property
    def sampled_steps(self) -> list[int]:
        """Steps at which prompts were answered; 0 is the base model."""
        return sorted({step for step, _ in self.samples})

    @property
    def verdict(self) -> str | None:
        """The worst of the proofs: pass, warn, fail; None before the first."""
        said = [one.detail.get("status") for one in self.exports.values() if one.kind == "smoke"]
        return next((worst for worst in ("fail", "warn", "pass") if worst in said), None)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
