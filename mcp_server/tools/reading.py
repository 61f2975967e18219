"""Long looks at data: on a thread, a few at a time, told as progress, and given up with their call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from anyio import CapacityLimiter, from_thread
from anyio.to_thread import run_sync
from mcp.server.mcpserver import Context

from .waiting import TELL_SECONDS

T = TypeVar("T")
Progress = Callable[[int], None]

AT_ONCE = CapacityLimiter(4)
"""Looks of this process; further ones wait their turn, so that calls which only read a run find a thread."""


async def read(work: Callable[[Progress], T], context: Context[Any, Any]) -> T:
    """What ``work`` returns; the rows it says it has read go to the client as progress, once a second.

    A call that is cancelled ends the work where it next says so, about every thousand rows, and what was half
    written is removed; it returns only then, so no thread is left behind.
    """
    teller = _Teller(context)
    return await run_sync(work, teller.rows, limiter=AT_ONCE)


class _Teller:
    """Told on the worker's thread; data may be gone through several times, and progress only grows."""

    def __init__(self, context: Context[Any, Any]) -> None:
        self._context = context
        self._earlier = self._last = 0
        self._told = time.monotonic()

    def rows(self, count: int) -> None:
        """So many rows of this pass are read."""
        from_thread.check_cancelled()
        if count < self._last:
            self._earlier += self._last
        self._last = count
        if time.monotonic() - self._told >= TELL_SECONDS:
            self._told = time.monotonic()
            whole = self._earlier + count
            from_thread.run(self._context.report_progress, whole, None, f"{whole:,} rows read")
