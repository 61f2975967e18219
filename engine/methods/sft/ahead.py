"""The next step's batches, fetched on the host while the GPU computes this one's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any


class BatchesAhead:
    """Takes batches from an epoch's iterator, one optimizer step ahead once :meth:`fetch` was called.

    Order and content are the iterator's own; what is ahead of a step that is never asked for is dropped, as
    when training stops.
    """

    def __init__(self) -> None:
        self._source: Iterator[Any] | None = None
        self._count = 0
        self._ready: list[Any] = []
        self.seconds = 0.0
        """Spent on fetching so far."""

    def take(self, source: Iterator[Any], count: int) -> list[Any]:
        """The next ``count`` batches, fewer at the end; those fetched ahead from the same source first."""
        if source is not self._source:
            self._ready = []
        self._source, self._count = source, count
        self.fetch()
        # More may be ready: an epoch's last step has fewer, and a sampler more batches than it said.
        taken, self._ready = self._ready[:count], self._ready[count:]
        return taken

    def fetch(self) -> float:
        """Fetch ahead up to as many batches as were taken last; the seconds that it took."""
        if self._source is None:
            return 0.0
        began = time.perf_counter()
        self._ready += islice(self._source, max(0, self._count - len(self._ready)))
        spent = time.perf_counter() - began
        self.seconds += spent
        return spent
