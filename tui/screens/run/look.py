"""One look at a run's directory: what is read off the screen's thread, once a second."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from whet.engine import api

from ...run_state import RunProgress

ACTIVE = ("queued", "waiting", "running")
RESUMABLE = ("stopped", "interrupted", "failed")
PAGE = 1 << 20
"""Bytes of events read at once: a long run's are many, and the screen is to stay quick meanwhile."""


@dataclass(frozen=True)
class Look:
    """What stood in the directory at ``now``."""

    summary: api.RunSummary
    now: float
    """Seconds since the epoch."""
    progress: RunProgress | None = None
    """Of a first look: what all events add up to."""
    events: list[api.Event] = field(default_factory=list)
    """Of a later look: those since the one before."""
    offset: int = 0
    """Byte of the events to go on from."""
    asked: api.StopRequest | None = None
    """What the worker is asked and has not done yet, whoever asked."""
    jobs: list[api.RunSummary] = field(default_factory=list)
    gpus: list[api.GPUHealth] = field(default_factory=list)

    @property
    def active(self) -> bool:
        """Whether a worker is there, or about to be."""
        return self.summary.status in ACTIVE

    @property
    def held(self) -> list[api.GPUHealth]:
        """The GPUs that the run holds, one a rank."""
        state, id = self.summary.state, self.summary.id
        return [one for one in self.gpus if state.gpu and (one.uuid == state.gpu or one.holder == id)]


def look(run_id: str, offset: int) -> Look:
    """Read what is new from byte ``offset`` of the events on, 0 at first. Raises WhetError ``run.*``."""
    run = api.find(run_id)
    summary = run.summary()  # before the events: a run seen ended then shows its last event
    first = RunProgress() if offset == 0 else None
    events, offset = api.events(run.id, offset, PAGE)
    while first is not None and first.take(events):
        events, offset = api.events(run.id, offset, PAGE)
    active = summary.status in ACTIVE
    return Look(
        summary=summary,
        now=time.time(),
        progress=first,
        events=events,
        offset=offset,
        asked=run.control.stop_requested() if active else None,
        jobs=run.list_jobs(),
        gpus=api.gpus() if summary.state.gpu and summary.status == "running" else [],
    )
