"""Watching runs: which there are, waiting for one, what it shows, and what is wrong with it."""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar, Literal

from anyio.to_thread import run_sync
from mcp.server.mcpserver import Context
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from whet.engine import api

from ..results import FoundOut, Result, call
from .changes import merged
from .common import ACTIVE, RESUMABLE, fitting, follow_up, known_run, number, standing
from .run_views import View, look, measured
from .toolsets import READS, Toolset
from .waiting import Until, Waited, begin, is_alert, wait

Wanted = Literal["active", "queued", "waiting", "running", "stopped", "failed", "finished", "interrupted"]
SEVERITIES = ("error", "warning", "note")
OFFERED = 3
"""Fixes whose call stands in ``next``."""


class RunOut(BaseModel):
    """A run in one line."""

    id: str
    status: str
    method: str
    model: str
    parent: str | None
    step: int
    total_steps: int | None
    loss: float | str | None
    eval_loss: float | str | None
    behind: list[str]
    started_by: str
    minutes_ago: float

    @classmethod
    def of(cls, run: api.RunSummary) -> RunOut:
        state = run.state
        return cls(
            id=run.id,
            status=run.status,
            method=state.method,
            model=state.model[-60:],
            parent=state.parent,
            step=state.step,
            total_steps=state.total_steps,
            loss=number(state.loss),
            eval_loss=number(state.eval_loss),
            behind=state.behind,
            started_by=state.started_by[:60],
            minutes_ago=round(max(0.0, time.time() - state.created) / 60, 1),
        )


class JobList(Result):
    """Runs, newest first."""

    runs: list[RunOut]
    total: int
    cursor: str | None


class WaitResult(Result):
    """Where a run stands, and what is new."""

    run_id: str
    reached: str
    status: str
    progress: dict[str, Any]
    behind: list[str]
    alerts: list[FoundOut]
    error: dict[str, str] | None
    since: str


class RunResult(Result):
    """One view of a run."""

    run_id: str
    status: str
    facts: dict[str, Any]
    entries: list[Any]
    cursor: str | None


class Diagnosis(Result):
    """What was found about a run."""

    run_id: str
    status: str
    plan_id: str | None
    findings: list[FoundOut]
    error: dict[str, str] | None


class RunTools(Toolset):
    """Read-only tools about runs, whoever started them."""

    name: ClassVar[str] = "inspect"
    tools: ClassVar[dict[str, ToolAnnotations]] = {
        "job_list": READS,
        "job_wait": READS,
        "run_get": READS,
        "run_diagnose": READS,
    }

    def job_list(
        self,
        status: Wanted | None = None,
        limit: Annotated[int, Field(ge=1, le=20)] = 10,
        cursor: str | None = None,
    ) -> JobList:
        """All runs and jobs, newest first, whoever started them. A result's `cursor` brings the next page."""
        wanted = ACTIVE if status == "active" else (status,)
        found = [run for run in api.runs() if status is None or run.status in wanted]
        rest = found
        if cursor is not None:
            last = known_run(cursor).id
            rest = found[1 + next((at for at, run in enumerate(found) if run.id == last), len(found)) :]
        rows = [RunOut.of(run) for run in rest]
        shown = rows[: len(fitting([row.model_dump() for row in rows], limit))]
        more = len(shown) < len(rows)
        named = status or "in all"
        newest = f"; the newest is {shown[0].id} ({shown[0].status})" if shown else ""
        return JobList(
            summary=f"{len(found)} run(s) {named}{newest}.",
            next=[
                *(call("job_wait", run_id=row.id) for row in shown if row.status in ACTIVE),
                *(call("run_diagnose", run_id=row.id) for row in shown[:1] if row.status not in ACTIVE),
                *([call("job_list", status=status, limit=limit, cursor=shown[-1].id)] if more else []),
                *([] if shown else [call("plan_create", data="demo", model="demo")]),
            ][:4],
            runs=shown,
            total=len(found),
            cursor=shown[-1].id if more else None,
        )

    async def job_wait(
        self,
        run_id: str,
        context: Context[Any, Any],
        until: Until = "end",
        timeout_seconds: Annotated[float, Field(ge=0, le=50)] = 45,
        since: str | None = None,
    ) -> WaitResult:
        """Wait for a run's next step, evaluation, alert (warning or error) or end. Call again with `since` of
        the result: only what is new counts."""
        run = await run_sync(known_run, run_id)
        offset = await run_sync(begin, run, since)
        return _waited(run, await wait(run, until, timeout_seconds, offset, context), until)

    def run_get(
        self,
        run_id: str,
        view: View = "summary",
        limit: Annotated[int, Field(ge=1, le=60)] = 30,
        cursor: str | None = None,
    ) -> RunResult:
        """One view of a run: `facts`, and `entries` in pages (`cursor`). config is in keys of plan_create's
        changes; logs come from the end; artifacts have sizes and verdicts."""
        run = api.run(known_run(run_id).id)
        page = look(view, run, limit, cursor)
        more = [call("run_get", run_id=run.id, view=view, limit=limit, cursor=page.cursor)]
        return RunResult(
            summary=f"{view} of {run.id}: {standing(run.status, run.state)}; {len(page.entries)} entries.",
            next=[*(more if page.cursor is not None else []), *_after(run, view)],
            run_id=run.id,
            status=run.status,
            facts=page.facts,
            entries=page.entries,
            cursor=page.cursor,
        )

    def run_diagnose(self, run_id: str) -> Diagnosis:
        """What is wrong with a run, before its start, in training and in export, worst first. A fix goes into
        plan_create's `changes` unchanged: `next` holds the call."""
        run = api.run(known_run(run_id).id)
        found = _findings(run)
        plan_id = None if run.plan is None else api.keep_plan(run.plan)  # so that plan_create finds it
        fixes = [] if plan_id is None else _fixes(plan_id, found)
        resume = [call("run_resume", run_id=run.id)] if run.status in RESUMABLE else []
        counts = ", ".join(
            f"{sum(one.severity == severity for one in found)} {severity}(s)" for severity in SEVERITIES
        )
        error = run.state.error
        ended = "" if error is None else f" It failed with {error.code}."
        paused = "" if run.paused_by is None else f" {run.paused_by} paused it."
        mend_first = error is not None or any(one.severity == "error" for one in found)
        rest = [one for one in _after(run) if not one.startswith("run_diagnose(")]
        lead = [*fixes, *resume] if mend_first else [*resume, *rest, *fixes]
        return Diagnosis(
            summary=f"{run.id} is {standing(run.status, run.state)}: {counts}.{ended}{paused}",
            next=list(dict.fromkeys([*lead, *rest]))[:5],
            warnings=[FoundOut.of(one).warning() for one in found if one.severity == "error"],
            run_id=run.id,
            status=run.status,
            plan_id=plan_id,
            findings=[FoundOut.of(one) for one in found],
            error=None if error is None else error.model_dump(),
        )


def _after(run: api.RunView, view: View | None = None) -> list[str]:
    """What to do once a run was looked at: of a finished one, going on comes before looking again."""
    again = call("run_get", run_id=run.id, view=view)
    calls = [one for one in follow_up(api.find(run.id), run.status, run.state) if one != again]
    finished = run.status == "finished"
    return sorted(calls, key=lambda one: finished and one.startswith("run_diagnose("))


def _waited(run: api.RunDir, seen: Waited, until: Until) -> WaitResult:
    state, since = seen.state, str(seen.offset)
    alerts = [
        event.finding for event in seen.events if isinstance(event, api.FindingEvent) and is_alert(event)
    ]
    held_out = [event for event in seen.events if isinstance(event, api.EvalEvent)]
    going_on = seen.status in ACTIVE
    again = call("job_wait", run_id=run.id, until=until, since=since)
    diagnose = [call("run_diagnose", run_id=run.id)] if alerts else []
    following = [*diagnose, again] if going_on else follow_up(run, seen.status, state)
    how = {"timeout": "still", "end": "now"}.get(seen.reached, f"{seen.reached} seen, it is")
    return WaitResult(
        summary=f"{run.id}: {how} {standing(seen.status, state)}.",
        next=following,
        warnings=list(dict.fromkeys(FoundOut.of(one).warning() for one in alerts))[:5],
        run_id=run.id,
        reached=seen.reached,
        status=seen.status,
        progress={
            "step": state.step,
            "total_steps": state.total_steps,
            "loss": number(state.loss),
            "eval_loss": number(state.eval_loss),
            **({"metrics": measured(held_out[-1])} if held_out and held_out[-1].metrics else {}),
        },
        behind=state.behind if going_on else [],
        alerts=[FoundOut.of(one) for one in alerts],
        error=None if state.error is None else state.error.model_dump(),
        since=since,
    )


def _findings(run: api.RunView) -> list[api.Finding]:
    """Of the plan, the run and the jobs on it, each once, worst first."""
    of_jobs = [
        event.finding
        for job in run.jobs
        for event in api.events(job.id)[0]
        if isinstance(event, api.FindingEvent)
    ]
    found = {repr(finding): finding for finding in (*run.findings, *of_jobs)}
    return sorted(found.values(), key=lambda one: SEVERITIES.index(one.severity))


def _fixes(plan_id: str, findings: list[api.Finding]) -> list[str]:
    """Calls that apply fixes: those of all errors and warnings at once, then each alone.

    Accepting a finding is a person's choice and is not offered.
    """
    found = [FoundOut.of(one) for one in findings if one.severity != "note"]
    ways = [merged(found), *(merged([one]) for one in found)]
    calls = [call("plan_create", base_plan_id=plan_id, changes=one) for one in ways if one]
    return list(dict.fromkeys(calls))[:OFFERED]
