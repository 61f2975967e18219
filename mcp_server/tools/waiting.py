"""Wait for something to happen to a run, for a bounded time, without holding a thread meanwhile."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
from anyio.to_thread import run_sync
from mcp.server.mcpserver import Context

from whet.engine import api

from .common import ACTIVE, standing

Until = Literal["step", "eval", "alert", "end"]
Reached = Literal["step", "eval", "alert", "end", "timeout"]

POLL_SECONDS = 0.2
TELL_SECONDS = 1.0
"""Progress is reported at most so often."""


@dataclass
class Waited:
    """What was seen of a run while waiting."""

    reached: Reached
    status: str
    state: api.RunState
    offset: int
    """Byte of the run's events to go on from."""
    events: list[api.Event] = field(default_factory=list)
    """New ones of the newest attempt."""


def begin(run: api.RunDir, since: str | None) -> int:
    """The byte of a run's events that a cursor means. Raises WhetError ``job.cursor``."""
    if since is None or since == "0":
        return 0
    if since.isdecimal() and len(since) < 18 and run.events.exists():
        with open(run.events, "rb") as file:
            file.seek(int(since) - 1)
            if file.read(1) == b"\n":
                return int(since)
    raise api.WhetError(
        "job.cursor",
        f"since={api.printable(since[:40])!r} is no place in the events of {run.id}.",
        "Give back the `since` of an earlier job_wait of this run, or none.",
    )


def end_of_events(run: api.RunDir) -> str:
    """The cursor behind all that has happened so far."""
    return str(api.events(run.id)[1])


async def wait(
    run: api.RunDir, until: Until, seconds: float, offset: int, context: Context[Any, Any]
) -> Waited:
    """Poll until the event asked for has come, the run has ended, or the time is over.

    Progress (seconds of those allowed, and where the run stands) goes to the client.
    """
    started, told = time.monotonic(), ("", -TELL_SECONDS)
    seen: list[api.Event] = []
    while True:
        status, state, new, offset = await run_sync(_look, run, offset)
        seen += [event for event in new if event.attempt == state.attempt]
        passed = time.monotonic() - started
        reached = _reached(until, status, seen)
        if reached is None and passed >= seconds:
            reached = "timeout"
        words = standing(status, state)
        if words != told[0] and (passed - told[1] >= TELL_SECONDS or reached is not None):
            await context.report_progress(min(passed, seconds), seconds, words)
            told = (words, passed)
        if reached is not None:
            return Waited(reached, status, state, offset, seen)
        await anyio.sleep(min(POLL_SECONDS, max(0.0, seconds - passed)))


def _look(run: api.RunDir, offset: int) -> tuple[str, api.RunState, list[api.Event], int]:
    status = run.status()  # before the events: a run seen ended then shows its last event
    events, offset = api.events(run.id, offset)
    return status, run.read_state(), events, offset


def _reached(until: Until, status: str, events: list[api.Event]) -> Reached | None:
    if status not in ACTIVE:
        return "end"
    wanted = {
        "step": lambda event: isinstance(event, api.StepEvent),
        "eval": lambda event: isinstance(event, api.EvalEvent),
        "alert": is_alert,
        "end": lambda event: False,
    }[until]
    return until if any(map(wanted, events)) else None


def is_alert(event: api.Event) -> bool:
    """A finding that is more than a note, or an error."""
    if isinstance(event, api.FindingEvent):
        return event.finding.severity != "note"
    return isinstance(event, api.ErrorEvent)
