"""Everything the directory of a run tells, read in one go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from .checks.exported import failure_findings
from .findings import Finding
from .plan import Plan
from .runs.context import PAUSED_BY
from .runs.events import (
    FAST_PATH,
    EvalEvent,
    Event,
    ExportEvent,
    FindingEvent,
    PhaseEvent,
    SampleEvent,
    StepEvent,
    last_attempt,
    read_events,
)
from .runs.state import RunState, RunSummary, Status
from .runs.store import RunDir


class RunView(BaseModel):
    """A run's state, its plan, what happened, was found and written."""

    id: str
    path: Path
    status: Status
    state: RunState
    plan: Plan | None
    """Of a job its parent's; None for a job on files that no run made."""
    evals: list[EvalEvent] = []
    samples: list[SampleEvent] = []
    findings: list[Finding] = []
    exports: list[ExportEvent] = []
    """The newest word on each file; jobs on this run have their say too."""
    jobs: list[RunSummary] = []
    """Exports, evaluations and proofs that were started on this run, newest first."""
    steps: list[StepEvent] = []
    fast_path: str | None = None
    """How many parts of the model run fused, and why the others do not; none before it is loaded."""
    paused_by: str | None = None
    """The finding for which a stopped run paused itself."""
    verdict: str | None = None
    """The worst verdict of the smoke tests: pass, warn or fail; none before the first."""


def view_run(run: RunDir) -> RunView:
    """Read a run's directory. Raises WhetError ``run.unreadable``, ``run.plan_unreadable``."""
    status = run.status()  # before the events: a run seen finished then shows its last event
    events = list(last_attempt(read_events(run.events)[0]))
    jobs = run.list_jobs()
    of_jobs = [event for job in jobs for event in read_events(RunDir(Path(job.path)).events)[0]]
    exports = _exports([*events, *of_jobs])
    state = run.read_state()
    verdicts = [event.detail.get("status") for event in exports if event.kind == "smoke"]
    agreed = None if run.job.exists() and not run.plan.exists() else run.load_plan()
    planned = [] if agreed is None else agreed.findings
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
        findings=list({repr(finding): finding for finding in planned + seen}.values()),
        exports=exports,
        jobs=jobs,
        steps=[event for event in events if isinstance(event, StepEvent)],
        fast_path=fused[-1] if fused else None,
        verdict=next((worst for worst in ("fail", "warn", "pass") if worst in verdicts), None),
    )


def _exports(events: Sequence[Event]) -> list[ExportEvent]:
    """The newest word on each file: it may be written and proven again, and a new file is not proven yet."""
    newest: dict[tuple[str, str], ExportEvent] = {}
    for event in sorted((one for one in events if isinstance(one, ExportEvent)), key=lambda one: one.time):
        newest.pop((event.kind, event.path), None)
        if event.kind != "smoke":
            newest.pop(("smoke", event.path), None)
        newest[event.kind, event.path] = event
    return list(newest.values())
