"""What a job sees of its run in a rank other than 0: the same object, and it writes nothing."""

from __future__ import annotations

from typing import Any, Literal

from ..errors import WhetError
from ..findings import Finding
from .context import RunContext
from .control import StopRequest
from .events import Event, FindingEvent
from .store import RunDir


class PeerContext(RunContext):
    """A rank's view of the run that rank 0 writes.

    Everything can be read: ``dir``, ``plan``, ``recipe``, ``attempt``. What is emitted or updated is dropped,
    ``summary`` goes nowhere; but the last error that the job found is kept, for the report of a rank that
    fails. Requests of people are rank 0's to hear, and it tells the others at the end of a
    step (:mod:`whet.engine.methods.rank_agreement`), so no rank leaves one that the others are in.
    """

    def __init__(self, directory: RunDir) -> None:
        # Not super().__init__: that one is handed the run's event log, which only rank 0 may open.
        state = directory.read_state()
        self.dir, self.attempt, self.summary = directory, state.attempt, dict(state.summary)
        self.found: Finding | None = None

    def stop_requested(self) -> StopRequest | None:
        """None: a rank is not asked by files or signals."""
        return None

    def take_checkpoint_request(self) -> bool:
        """No: the request is left for rank 0 to take."""
        return False

    def emit(self, event: Event) -> None:
        """Nothing is said: rank 0 says the same, unless this rank fails alone."""
        if isinstance(event, FindingEvent) and event.finding.severity == "error":
            self.found = event.finding

    def update(self, **changes: Any) -> None:
        """Nothing: rank 0 writes the state."""

    def close(
        self, status: Literal["finished", "stopped", "failed"], error: WhetError | None = None
    ) -> list[OSError]:
        """Nothing: how the run ends is rank 0's to say."""
        return []
