"""Everything the directory of a run tells, read in one go."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from .findings import Finding
from .plan import Plan
from .runs.events import (
    EvalEvent,
    ExportEvent,
    FindingEvent,
    SampleEvent,
    StepEvent,
    last_attempt,
    read_events,
)
from .runs.store import RunDir, RunState, Status


class RunView(BaseModel):
    """A run's state, its plan, what happened, was found and written."""

    id: str
    path: Path
    status: Status
    state: RunState
    plan: Plan
    evals: list[EvalEvent] = []
    samples: list[SampleEvent] = []
    findings: list[Finding] = []
    exports: list[ExportEvent] = []
    steps: list[StepEvent] = []
    verdict: str | None = None
    """The worst verdict of the smoke tests: pass, warn or fail; none before the first."""


def view_run(run: RunDir) -> RunView:
    """Read a run's directory. Raises WhetError ``run.unreadable``."""
    status = run.status()  # before the events: a run seen finished then shows its last event
    events = list(last_attempt(read_events(run.events)[0]))
    # A resumed run may write and prove the same file again: the newest word on each counts.
    newest = {(event.kind, event.path): event for event in events if isinstance(event, ExportEvent)}
    exports = list(newest.values())
    verdicts = [event.detail.get("status") for event in exports if event.kind == "smoke"]
    agreed = run.load_plan()
    seen = [event.finding for event in events if isinstance(event, FindingEvent)]
    return RunView(
        id=run.id,
        path=run.path,
        status=status,
        state=run.read_state(),
        plan=agreed,
        evals=[event for event in events if isinstance(event, EvalEvent)],
        samples=[event for event in events if isinstance(event, SampleEvent)],
        findings=list({repr(finding): finding for finding in agreed.findings + seen}.values()),
        exports=exports,
        steps=[event for event in events if isinstance(event, StepEvent)],
        verdict=next((worst for worst in ("fail", "warn", "pass") if worst in verdicts), None),
    )
