"""One look at a run's directory: what is read off the screen's thread, once a second."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from whet.engine import api

ACTIVE = ("queued", "waiting", "running")
RESUMABLE = ("stopped", "interrupted", "failed")


@dataclass(frozen=True)
class Look:
    """What stood in the directory at ``now``."""

    summary: api.RunSummary
    now: float
    """Seconds since the epoch."""
    events: list[api.Event] = field(default_factory=list)
    """Those since the look before."""
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
    def gpu(self) -> api.GPUHealth | None:
        """The one that the run holds."""
        return next((one for one in self.gpus if one.uuid == self.summary.state.gpu), None)


def look(run_id: str, offset: int) -> Look:
    """Read what is new from byte ``offset`` of the events on. Raises WhetError ``run.*``."""
    run = api.find(run_id)
    summary = run.summary()  # before the events: a run seen ended then shows its last event
    events, offset = api.events(run.id, offset)
    active = summary.status in ACTIVE
    return Look(
        summary=summary,
        now=time.time(),
        events=events,
        offset=offset,
        asked=run.control.stop_requested() if active else None,
        jobs=run.list_jobs(),
        gpus=api.gpus() if summary.state.gpu and summary.status == "running" else [],
    )
