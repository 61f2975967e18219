"""Training: start a plan, go on with a run, stop one. Runs outlive the server that started them."""

from __future__ import annotations

import time
from typing import Any, ClassVar, Literal

from mcp.server.mcpserver import Context
from mcp.types import ToolAnnotations

from whet.engine import api

from ..chats import Chats
from ..options import Options
from ..results import FoundOut, Result, call
from ..root import Root
from ..server import who
from .changes import check_sources, merged
from .common import ACTIVE, known_run, overrides, standing
from .toolsets import DESTROYS, WRITES, Toolset
from .waiting import POLL_SECONDS, end_of_events

SETTLE_SECONDS = 5.0
"""In which a worker usually says that it runs, or behind whom it waits."""


class StartResult(Result):
    """A run that was started, or found under its key."""

    run_id: str
    status: str
    behind: list[str]
    started_by: str


class StopResult(Result):
    """What was asked of a run."""

    run_id: str
    asked: str
    state: str


def started(run_id: str, begun: float, since: str | None = None) -> StartResult:
    """The answer to a start at ``begun`` (seconds since the epoch), once it is known whether it waits."""
    run = api.find(run_id)
    until = time.monotonic() + SETTLE_SECONDS
    while (status := run.status()) == "queued" and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    state = run.read_state()
    known = since is None and state.created < begun
    how = "was already started under this key and is" if known else "is"
    awaited = "alert" if status in ACTIVE and not state.is_job else "end"
    return StartResult(
        summary=f"{run.id} {how} {standing(status, state)}. It outlives this server.",
        next=[call("job_wait", run_id=run.id, until=awaited, since=since), call("job_list", status="active")],
        run_id=run.id,
        status=status,
        behind=state.behind,
        started_by=state.started_by,
    )


class TrainTools(Toolset):
    """Tools that start and end trainings."""

    name: ClassVar[str] = "train"
    tools: ClassVar[dict[str, ToolAnnotations]] = {
        "run_start": WRITES,
        "run_resume": WRITES,
        "job_stop": DESTROYS,
    }

    def __init__(self, options: Options, root: Root, chats: Chats) -> None:
        super().__init__(options, root)
        self.chats = chats

    def run_start(self, plan_id: str, idempotency_key: str, context: Context[Any, Any]) -> StartResult:
        """Start a plan, detached. The same key never starts twice: repeat the call when in doubt."""
        plan = api.kept_plan(plan_id)
        check_sources(plan, self.root)
        _refuse_blocked(plan)
        self.chats.close()  # a loaded chat model would take memory that the plan counts on
        begun = time.time()
        return started(api.start(plan, who(context), idempotency_key, self.options.remote_code), begun)

    def run_resume(self, run_id: str, changes: dict[str, Any] | None = None) -> StartResult:
        """Go on from the last checkpoint. `changes` may lengthen it: training, eval, sampling, export and
        checks keys only, as {"training.max_steps": 60}."""
        run = known_run(run_id)
        since = end_of_events(run)
        self.chats.close()
        return started(api.resume(run.id, overrides(changes)), time.time(), since)

    def job_stop(
        self,
        run_id: str,
        mode: Literal["checkpoint", "now"] = "checkpoint",
        expected_state: Literal["queued", "waiting", "running"] | None = None,
    ) -> StopResult:
        """Stop a run: `checkpoint` finishes the step and saves, `now` loses what came since the last save.
        Refused when the run is not in `expected_state`."""
        run = known_run(run_id)
        status, state = run.status(), run.read_state()
        if status != (expected_state or status) or status not in ACTIVE:
            wanted = f", not {expected_state}" if expected_state else ""
            raise api.WhetError(
                "job.state" if status in ACTIVE else "run.not_running",
                f"Run {run.id} is {standing(status, state)}{wanted}; nothing was stopped.",
                call("run_get", run_id=run.id),
            )
        asked = run.control.stop_requested()
        if asked is None or (mode == "now" and asked != "now"):
            asked = api.stop(run.id, now=mode == "now")  # asked twice the engine would stop at once
        return StopResult(
            summary=f"{run.id} was {standing(status, state)} and is asked to stop ({asked}).",
            next=[call("job_wait", run_id=run.id, until="end"), call("run_resume", run_id=run.id)],
            run_id=run.id,
            asked=asked,
            state=status,
        )


def _refuse_blocked(plan: api.Plan) -> None:
    """Raises WhetError ``plan.blocked`` with the calls that mend the plan."""
    blocked = plan.blocked()
    if not blocked:
        return
    ids = ", ".join(sorted({finding.id for finding in blocked}))
    fixes = merged(FoundOut.of(one) for one in blocked)
    raise api.WhetError(
        "plan.blocked",
        f"{len(blocked)} finding(s) block the start: {ids}.",
        call("plan_create", base_plan_id=plan.id, changes=fixes or None),
    )
