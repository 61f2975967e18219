"""Requests to a running worker: empty files in ``control/``, the same from a person, an agent, a script."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from .files import private_dir, private_file

StopRequest = Literal["checkpoint", "now"]


class Control:
    """Both ends of the requests: front ends write them, the worker polls them between steps."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stop = directory / "stop"
        self._stop_now = directory / "stop_now"
        self._checkpoint = directory / "checkpoint"

    def request_stop(self, now: bool = False) -> StopRequest:
        """Ask to finish the step, checkpoint and end; asked a second time, or ``now``: end at once."""
        at_once = now or self._stop.exists()
        self._touch(self._stop_now if at_once else self._stop)
        return "now" if at_once else "checkpoint"

    def stop_requested(self) -> StopRequest | None:
        """The strongest stop request so far. Two stat calls, cheap enough for each micro-batch."""
        if self._stop_now.exists():
            return "now"
        return "checkpoint" if self._stop.exists() else None

    def request_checkpoint(self) -> None:
        """Ask for a checkpoint after the current step; the run goes on."""
        self._touch(self._checkpoint)

    def take_checkpoint_request(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        try:
            self._checkpoint.unlink()
        except FileNotFoundError:
            return False
        return True

    def clear(self) -> None:
        """Forget what an earlier attempt was asked. Only for who holds the run's lock, before a start."""
        for path in (self._stop, self._stop_now, self._checkpoint):
            path.unlink(missing_ok=True)

    def _touch(self, path: Path) -> None:
        private_dir(self.directory)
        os.close(private_file(path, os.O_WRONLY))
