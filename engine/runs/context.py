"""What a job sees of its run: one object to say events with and to ask whether to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from ..errors import WhetError
from ..parallel.topology import Topology, here
from .control import StopRequest
from .events import CheckpointEvent, DoneEvent, ErrorEvent, EvalEvent, Event, EventLog, PhaseEvent, StepEvent
from .state import RunError
from .store import RunDir

if TYPE_CHECKING:
    from ..plan import Plan
    from ..recipe import Recipe

MIRROR_SECONDS = 1.0
"""How often progress is copied from the events into state.json at most."""


PAUSED_BY = "paused_by"
"""In a run's summary: the finding that paused it."""


class Stopped(Exception):
    """Raised by a job that ends on request, after its checkpoint if there was time; the run is `stopped`."""


class RunContext:
    """The worker's hold on its run; safe to use from several threads of the worker's process.

    ``summary`` is the job's to fill: it ends in the done event and in state.json.
    """

    def __init__(self, directory: RunDir, attempt: int, events: EventLog) -> None:
        self.dir = directory
        self.attempt = attempt
        # A later attempt that has only the export left still knows what the training measured.
        self.summary: dict[str, Any] = dict(directory.read_state().summary)
        self.lost: WhetError | None = None  # how another rank died: nothing can go on
        self.on_trained: Callable[[], None] = lambda: None  # whoever has something to let go of then
        self.signals = 0  # SIGTERM and SIGINT so far: each counts as one request to stop
        self._events = events
        self._lock = threading.Lock()
        self._pending: dict[str, Any] = {}
        self._phase: str | None = None
        self._mirrored = 0.0
        self._closed = False

    @cached_property
    def plan(self) -> Plan:
        """The plan the run was started from."""
        return self.dir.load_plan()

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    @property
    def topology(self) -> Topology:
        """Which of the run's processes this is; rank 0 writes the run."""
        return here()

    def emit(self, event: Event) -> None:
        """Append an event and mirror it into state.json: steps at most once a second, checkpoints at once."""
        with self._lock:
            if self._closed:
                return  # stopped at once: nothing comes after the last event
            self._events.append(event)
            self._pending |= _mirror(event)
            new_phase = isinstance(event, PhaseEvent) and event.phase != self._phase
            urgent = new_phase or isinstance(event, CheckpointEvent | EvalEvent)
            self._phase = self._pending.get("phase", self._phase)
            if urgent or time.monotonic() - self._mirrored >= MIRROR_SECONDS:
                self._write()

    def update(self, **changes: Any) -> None:
        """Write fields of :class:`RunState` that no event carries, e.g. ``gpu``, at once."""
        with self._lock:
            if not self._closed:
                self._write(**changes)

    def stop_requested(self) -> StopRequest | None:
        """``checkpoint``: finish the step, save, raise :class:`Stopped`; ``now``: raise it at once.

        A job that lost a rank is to end now as well.
        """
        if self.lost is not None:
            return "now"
        asked = self.dir.control.stop_requested()
        count = self.signals + {None: 0, "checkpoint": 1, "now": 2}[asked]
        return None if count == 0 else "checkpoint" if count == 1 else "now"

    def leave_if_asked(self) -> None:
        """Raises Stopped when someone asked the run to stop."""
        if self.stop_requested():
            raise Stopped

    def take_checkpoint_request(self) -> bool:
        """Whether someone asked for a checkpoint since the last call."""
        return self.dir.control.take_checkpoint_request()

    def trained(self) -> None:
        """Said by rank 0's job where the part that all ranks share is over: it goes on alone, on one GPU."""
        self.on_trained()

    def close(
        self, status: Literal["finished", "stopped", "failed"], error: WhetError | None = None
    ) -> list[OSError]:
        """End the attempt in a state and an event that say so; the first call counts.

        Returns what could not be written. A full disk may refuse even this: then the state still says
        running, and with the lock free readers call the run interrupted, which is true.
        """
        with self._lock:
            if self._closed:
                return []
            self._closed = True
            self.dir.reserve.unlink(missing_ok=True)
            refused: list[OSError] = []
            last: Event = DoneEvent(
                status="stopped" if status == "stopped" else "finished", summary=self.summary
            )
            if error is not None:
                last = ErrorEvent(code=error.code, message=error.message, hint=error.hint)
                self._pending["error"] = RunError(**error.as_dict())
            self._pending |= {"status": status, "pid": None, "gpu": None, "waiting_for": [], "behind": []}
            # The state before the event: who reads the last event then finds the state it speaks of.
            for write in (self._write, lambda: self._events.append(last), self._events.close):
                try:
                    write()
                except OSError as problem:
                    refused.append(problem)
            return refused

    def _write(self, **changes: Any) -> None:
        self.dir.write_state(**(self._pending | changes))
        self._pending = {}
        self._mirrored = time.monotonic()


def _mirror(event: Event) -> dict[str, Any]:
    """What state.json repeats of an event."""
    match event:
        case PhaseEvent():
            return {"phase": event.phase}
        case StepEvent():
            return {
                "phase": "train",
                "step": event.step,
                "total_steps": event.total_steps,
                "loss": event.loss,
            }
        case EvalEvent():
            return {"eval_loss": event.loss}
        case CheckpointEvent():
            return {"last_checkpoint": event.path} | ({"best_checkpoint": event.path} if event.best else {})
    return {}
