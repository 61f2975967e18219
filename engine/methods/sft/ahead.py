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
        self._ready: list[Any] | None = None
        self.seconds = 0.0
        """Spent on fetching so far."""

    def take(self, source: Iterator[Any], count: int) -> list[Any]:
        """The next ``count`` batches, fewer at the end; those fetched ahead from the same source first."""
        ready = self._ready if source is self._source and self._ready is not None else []
        self._source, self._count, self._ready = source, count, None
        return [*ready, *self._fetched(source, count - len(ready))]

    def fetch(self) -> None:
        """Fetch as many batches as were taken last."""
        if self._source is not None and self._ready is None:
            self._ready = self._fetched(self._source, self._count)

    def _fetched(self, source: Iterator[Any], count: int) -> list[Any]:
        began = time.perf_counter()
        batches = list(islice(source, count))
        self.seconds += time.perf_counter() - began
        return batches
