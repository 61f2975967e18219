"""Everything the directory of a run tells, read in one go."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from .checks.exported import failure_findings
from .findings import Finding
from .plan import Plan
from .runs.context import PAUSED_BY
from .runs.events import (
    FAST_PATH,
    EvalEvent,
    ExportEvent,
    FindingEvent,
    PhaseEvent,
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
    fast_path: str | None = None
    """How many parts of the model run fused, and why the others do not; none before it is loaded."""
    paused_by: str | None = None
    """The finding for which a stopped run paused itself."""
    verdict: str | None = None
    """The worst verdict of the smoke tests: pass, warn or fail; none before the first."""


def view_run(run: RunDir) -> RunView:
    """Read a run's directory. Raises WhetError ``run.unreadable``."""
    status = run.status()  # before the events: a run seen finished then shows its last event
    events = list(last_attempt(read_events(run.events)[0]))
    # A resumed run may write and prove the same file again: the newest word on each counts.
    newest = {(event.kind, event.path): event for event in events if isinstance(event, ExportEvent)}
    exports = list(newest.values())
    state = run.read_state()
    verdicts = [event.detail.get("status") for event in exports if event.kind == "smoke"]
    agreed = run.load_plan()
    seen = [event.finding for event in events if isinstance(event, FindingEvent)]
    if state.error is not None:
        # a full disk may have refused the event, but never this: its bytes were held back
        seen += [one for one in failure_findings(state.error, run.id) if one.id not in {f.id for f in seen}]
    said = [event.detail for event in events if isinstance(event, PhaseEvent)]
    fused = [detail.removeprefix(FAST_PATH) for detail in said if detail.startswith(FAST_PATH)]
    return RunView(
        id=run.id,
        path=run.path,
        status=status,
        state=state,
        paused_by=state.summary.get(PAUSED_BY) if status == "stopped" else None,
        plan=agreed,
        evals=[event for event in events if isinstance(event, EvalEvent)],
        samples=[event for event in events if isinstance(event, SampleEvent)],
        findings=list({repr(finding): finding for finding in agreed.findings + seen}.values()),
        exports=exports,
        steps=[event for event in events if isinstance(event, StepEvent)],
        fast_path=fused[-1] if fused else None,
        verdict=next((worst for worst in ("fail", "warn", "pass") if worst in verdicts), None),
    )
