"""The time of a run's events: it never goes back, and durations are true, whatever is done to the clock.

The time of day is read once an attempt; from there on the kernel's own clock counts, which nobody sets and
which goes on through a suspend. An attempt that begins before the last one ended, by a clock that was set
back, begins where that one ended.
"""

from __future__ import annotations

import time


class RunClock:
    """Seconds since the epoch, from ``not_before`` on."""

    def __init__(self, not_before: float = 0.0) -> None:
        self._began = max(time.time(), not_before) - _counted()

    def now(self) -> float:
        """Never less than it said before."""
        return self._began + _counted()


def _counted() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
