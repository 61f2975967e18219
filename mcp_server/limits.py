"""How often tools may be called: a sliding minute for all calls, a smaller one for calls that write."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from whet.engine.api import WhetError

WINDOW = 60.0
LARGEST_CALL = 256 << 10
"""Bytes of one call's arguments as JSON."""


class Limits:
    """Counts one server's calls. Safe to use from several threads.

    Args:
        calls: calls a minute; writes: those of them that may write.
        clock: seconds, monotonic.
    """

    def __init__(self, calls: int, writes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowed = {"calls": calls, "writes": writes}
        self._seen: dict[str, deque[float]] = {"calls": deque(), "writes": deque()}
        self._clock = clock
        self._lock = threading.Lock()

    def admit(self, arguments: dict[str, Any], writes: bool) -> None:
        """Count one call. Raises WhetError ``call.too_often``, ``call.too_large``, ``argument.invalid``."""
        try:
            size = len(json.dumps(arguments, ensure_ascii=False).encode())
        except (UnicodeEncodeError, RecursionError) as error:
            raise WhetError(
                "argument.invalid",
                f"The arguments cannot be written as JSON: {type(error).__name__}.",
                "Leave out halves of surrogate pairs, and lists in lists beyond a few.",
            ) from error
        if size > LARGEST_CALL:
            raise WhetError(
                "call.too_large",
                f"The arguments are {size:,} bytes; at most {LARGEST_CALL:,} are taken.",
                "Write the text to a file inside of the root and name the file.",
            )
        with self._lock:
            now = self._clock()
            for kind in ("calls", "writes") if writes else ("calls",):
                self._admit(kind, now)

    def _admit(self, kind: str, now: float) -> None:
        seen = self._seen[kind]
        while seen and now - seen[0] >= WINDOW:
            seen.popleft()
        if len(seen) >= self._allowed[kind]:
            wait = WINDOW - (now - seen[0])
            raise WhetError(
                "call.too_often",
                f"{len(seen)} {kind} in the last minute; at most {self._allowed[kind]} are taken.",
                f"Wait {wait:.0f} seconds. job_wait waits for a run without being called again and again.",
            )
        seen.append(now)
