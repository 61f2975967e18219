"""One split on its way to disk: batches of token rows are thinned, counted and appended as Arrow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .batches import TokenBatch
from .inspection import SplitCounter
from .row_flags import DROPPED

if TYPE_CHECKING:
    import numpy as np
    import pyarrow


class SplitWriter:
    """Takes batches in order.

    Args:
        path: of the Arrow stream: input_ids list<int32>, labels list<int32>, row int64 (number of the row
            among the split's rows).
        drop: which rows to leave out, in the words of ``data.drop``.
        leaked: hashes of held-out rows, for ``drop`` with ``leaked``.
    """

    def __init__(self, path: Path, drop: Iterable[str] = (), leaked: Iterable[int] = ()) -> None:
        import numpy as np
        import pyarrow as pa

        self.counter = SplitCounter()
        self._drop = tuple(drop)
        self._seen: set[int] | None = set() if "duplicates" in self._drop else None
        self._leaked = np.array(sorted(leaked), dtype=np.uint64)
        self._schema = self.schema()
        self._writer: pyarrow.RecordBatchStreamWriter = pa.ipc.new_stream(str(path), self._schema)

    def schema(self) -> pyarrow.Schema:
        """Of the stream."""
        import pyarrow as pa

        ids = pa.list_(pa.int32())
        return pa.schema([("input_ids", ids), ("labels", ids), ("row", pa.int64())])

    def add(self, batch: TokenBatch, chosen: np.ndarray | None = None) -> None:
        """Append a batch, or its examples that are ``chosen`` (bool, one an example)."""
        import numpy as np

        examples = len(batch.lines)
        keep = np.ones(examples, dtype=bool) if chosen is None else chosen.copy()
        self._thin(batch, keep)
        first = len(self.counter.lines)
        number = first + np.cumsum(keep) - 1
        owners = np.frombuffer(batch.owners, dtype=np.uint32)
        rows = keep[owners]
        self.counter.take(batch, keep, rows)
        self.write(batch, keep, rows, number)

    def write(self, batch: TokenBatch, keep: np.ndarray, rows: np.ndarray, number: np.ndarray) -> None:
        """Store the token ``rows`` (bool) of the examples to ``keep``, each with its example's number."""
        import numpy as np

        owners = np.frombuffer(batch.owners, dtype=np.uint32)
        sizes = np.frombuffer(batch.sizes, dtype=np.uint32)
        stored = rows & (sizes > 0)
        if not stored.any():
            return
        tokens = np.repeat(stored, sizes)
        self._write(
            np.frombuffer(batch.ids, dtype=np.int32)[tokens],
            np.frombuffer(batch.labels, dtype=np.int32)[tokens],
            sizes[stored],
            number[owners[stored]],
        )

    def close(self) -> None:
        """Write the stream's end."""
        self._writer.close()

    def _thin(self, batch: TokenBatch, keep: np.ndarray) -> None:
        """Clear ``keep`` where a row is to be left out, counting it under the first reason."""
        import numpy as np

        flags = np.frombuffer(batch.flags, dtype=np.uint32)
        hashes = np.frombuffer(batch.hashes, dtype=np.uint64)
        for reason in self._drop:
            if reason == "duplicates":
                found = self._repeated(hashes, keep)
            elif reason == "leaked":
                found = np.isin(hashes, self._leaked)
            else:
                found = (flags & int(DROPPED[reason])) > 0
            found &= keep
            self.counter.dropped[reason] = self.counter.dropped.get(reason, 0) + int(found.sum())
            keep &= ~found

    def _repeated(self, hashes: np.ndarray, keep: np.ndarray) -> np.ndarray:
        import numpy as np

        assert self._seen is not None
        found = np.zeros(len(hashes), dtype=bool)
        for place in np.flatnonzero(keep):
            key = int(hashes[place])
            found[place] = key in self._seen
            self._seen.add(key)
        return found

    def _write(self, ids: np.ndarray, labels: np.ndarray, sizes: np.ndarray, rows: np.ndarray) -> None:
        import numpy as np
        import pyarrow as pa

        # As packed buffers: `pyarrow.array` would import pandas first.
        ends = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
        columns = []
        for values in (ids, labels):
            inner = pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)])
            lists = [None, pa.py_buffer(ends)]
            columns.append(pa.Array.from_buffers(pa.list_(pa.int32()), len(sizes), lists, children=[inner]))
        numbers = pa.py_buffer(rows.astype(np.int64))
        columns.append(pa.Array.from_buffers(pa.int64(), len(sizes), [None, numbers]))
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
