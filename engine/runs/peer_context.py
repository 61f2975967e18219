"""What a job sees of its run in a rank other than 0: the same object, and it writes nothing."""

from __future__ import annotations

from typing import Any, Literal

from ..errors import WhetError
from .context import RunContext
from .control import StopRequest
from .events import Event
from .store import RunDir


class PeerContext(RunContext):
    """A rank's view of the run that rank 0 writes.

    Everything can be read: ``dir``, ``plan``, ``recipe``, ``attempt``. What is emitted or updated is dropped,
    ``summary`` goes nowhere. Requests of people are rank 0's to hear; here they are what :meth:`hear` said
    all ranks agreed on, so no rank leaves a step that the others are in.
    """

    def __init__(self, directory: RunDir) -> None:
        # Not super().__init__: that one is handed the run's event log, which only rank 0 may open.
        state = directory.read_state()
        self.dir, self.attempt, self.summary = directory, state.attempt, dict(state.summary)
        self._stop: StopRequest | None = None
        self._checkpoint = False

    def hear(self, stop: StopRequest | None, checkpoint: bool) -> None:
        """Take over what all ranks agreed on at the boundary of a step.

        Args:
            stop: the answer of :meth:`stop_requested` from now on.
            checkpoint: that the next :meth:`take_checkpoint_request` is true.
        """
        self._stop, self._checkpoint = stop, checkpoint

    def stop_requested(self) -> StopRequest | None:
        """What was agreed on last; None until then. A rank is not asked by files or signals."""
        return self._stop

    def take_checkpoint_request(self) -> bool:
        """Whether a checkpoint was agreed on since the last call."""
        asked, self._checkpoint = self._checkpoint, False
        return asked

    def emit(self, event: Event) -> None:
        """Nothing: rank 0 says the same."""

    def update(self, **changes: Any) -> None:
        """Nothing: rank 0 writes the state."""

    def close(
        self, status: Literal["finished", "stopped", "failed"], error: WhetError | None = None
    ) -> list[OSError]:
        """Nothing: how the run ends is rank 0's to say."""
        return []
