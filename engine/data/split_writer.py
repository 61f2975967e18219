"""One split on its way to disk: batches of examples become token rows, counted as they pass."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .formats import Example
from .inspection import SplitCounter, remember
from .marker_scan import MarkerScan
from .masking import IGNORE
from .messages import alternates
from .rows import BadRow, RowError, preview_of
from .tokenization import PreparedText, RowTokenizer, Supervise, TokenRow

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 1000
BATCH_CHARACTERS = 4_000_000
"""A batch of few long rows ends here, so that memory stays bounded."""


@dataclass(slots=True)
class PendingRow:
    """An example with its place and content hash."""

    example: Example
    file: str
    line: int
    content_hash: int


class SplitWriter:
    """Collects rows, tokenises them a batch at a time, appends to an Arrow stream."""

    def __init__(
        self,
        path: Path,
        tokenizer: RowTokenizer,
        max_length: int,
        supervise: Supervise,
        scan: MarkerScan,
        bad_row: Callable[[BadRow], None],
    ) -> None:
        import pyarrow as pa

        self.counter = SplitCounter()
        self._tokenizer, self._max_length, self._supervise = tokenizer, max_length, supervise
        self._scan, self._bad_row = scan, bad_row
        ids = pa.list_(pa.int32())
        self._schema = pa.schema([("input_ids", ids), ("labels", ids), ("row", pa.int64())])
        self._writer: pyarrow.RecordBatchStreamWriter = pa.ipc.new_stream(str(path), self._schema)
        self._pending: list[tuple[PendingRow, PreparedText]] = []
        self._characters = 0

    def add(self, row: PendingRow) -> None:
        """Render now (a refusal is this row's fault), tokenise with the batch."""
        try:
            prepared = self._tokenizer.prepare(row.example, self._supervise)
        except RowError as error:
            content = row.example.messages or row.example.content()
            self._bad_row(BadRow(row.file, row.line, error.reason, preview_of(content)))
            return
        self._pending.append((row, prepared))
        self._characters += len(prepared.text)
        if len(self._pending) >= BATCH_ROWS or self._characters >= BATCH_CHARACTERS:
            self._flush()

    def close(self) -> None:
        """Write what is pending and the stream's end."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if not self._pending:
            return
        first = len(self.counter.lines)
        for row, _ in self._pending:
            self._count_example(row)
        rows = self._tokenizer.encode([text for _, text in self._pending], self._max_length, split_text=True)
        ids, labels, numbers = _Lists(), _Lists(), array("q")
        for tokens in rows:
            pending, prepared = self._pending[tokens.example]
            self._count_tokens(tokens, prepared, pending)
            if tokens.supervised:
                ids.append(tokens.input_ids)
                labels.append(tokens.labels)
                numbers.append(first + tokens.example)
        if numbers:
            self._write(ids, labels, numbers)
        self._pending.clear()
        self._characters = 0

    def _write(self, ids: _Lists, labels: _Lists, numbers: array[int]) -> None:
        import pyarrow as pa

        rows = pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])
        columns = [ids.arrow(), labels.arrow(), rows]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def _count_example(self, row: PendingRow) -> None:
        counter, messages = self.counter, row.example.messages
        counter.start_row(row.file, row.line, row.content_hash)
        self._scan.count(row.example, counter.special_in_text, counter.foreign_markers)
        if messages is None:
            return
        empty = sum(
            1
            for one in messages
            if one["role"] == "assistant" and not one["content"].strip() and "tool_calls" not in one
        )
        if empty:
            counter.count("empty_replies", empty)
        if not alternates(messages):
            counter.count("odd_roles")
            remember(counter.odd_role_examples, row.file, row.line)

    def _count_tokens(self, row: TokenRow, prepared: PreparedText, pending: PendingRow) -> None:
        counter, tokenizer, ids = self.counter, self._tokenizer, row.input_ids
        counter.lengths.append(row.full_length)
        if row.truncated:
            counter.count("truncated_rows")
            if row.supervised < row.full_supervised:
                counter.count("truncated_lost_end" if row.supervised else "truncated_lost_all")
        if not row.supervised:
            counter.count("unsupervised_rows")
            remember(counter.unsupervised_examples, pending.file, pending.line)
            return
        counter.count("token_rows")
        counter.count("tokens", len(ids))
        counter.count("supervised_tokens", row.supervised)
        counter.max_token_id = max(counter.max_token_id, max(ids))
        bos = tokenizer.bos_id
        if bos is not None and ids[0] == bos:
            if len(ids) > 1 and ids[1] == bos:
                counter.count("double_bos")
        elif prepared.chat and tokenizer.prefix:
            counter.count("missing_bos")
        if row.last and not row.truncated:
            self._count_end(row)

    def _count_end(self, row: TokenRow) -> None:
        labels, ends = row.labels, self._tokenizer.end_ids
        last = len(labels) - 1
        while labels[last] == IGNORE:
            last -= 1
        if labels[last] not in ends:
            self.counter.count("without_end_token")
        elif last > 0 and labels[last - 1] in ends:
            self.counter.count("double_end")


class _Lists:
    """Lists of ids on their way to Arrow, as packed buffers (`pyarrow.array` would import pandas first)."""

    def __init__(self) -> None:
        self.values = array("i")
        self.ends = array("i", [0])

    def append(self, ids: list[int]) -> None:
        self.values.extend(ids)
        self.ends.append(len(self.values))

    def arrow(self) -> pyarrow.Array:
        """As list<int32>."""
        import pyarrow as pa

        values = pa.Array.from_buffers(pa.int32(), len(self.values), [None, pa.py_buffer(self.values)])
        ends = [None, pa.py_buffer(self.ends)]
        return pa.Array.from_buffers(pa.list_(pa.int32()), len(self.ends) - 1, ends, children=[values])
