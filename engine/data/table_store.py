"""Rows of columns on disk, from the same sources, with the same care for bad rows as rows of tokens.

Texts are stored as they are: a method's own collator tokenises them. Here they are tokenised to know how long
they are, which decides memory, time and what is cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WhetError
from ..methods.reranker.asking import wrapping
from ..recipe import Recipe
from .batches import BATCH_ROWS, TokenBatch, hash_of
from .building import Builder
from .formats import FormatGuess, renamed
from .inspection import DataReport
from .layouts import find_layout, wanted_layouts
from .row_flags import Odd
from .rows import BadRow, RawRow, RowError, preview_of
from .sources import Role
from .split_writer import SplitWriter
from .tables import Layout
from .tokenizer_files import TokenizerFiles

if TYPE_CHECKING:
    import numpy as np
    import pyarrow


@dataclass(slots=True)
class TableBatch(TokenBatch):
    """A batch with its rows' columns."""

    values: list[dict[str, Any]] = field(default_factory=list)


class TableWriter(SplitWriter):
    """Stores a layout's columns, and ``row`` as for token rows."""

    def __init__(self, layout: Layout, path: Path, drop: Iterable[str], leaked: Iterable[int]) -> None:
        self.layout = layout
        self.classes: Counter[str] = Counter()
        super().__init__(path, drop, leaked)

    def schema(self) -> pyarrow.Schema:
        """Strings or lists of them, and numbers as float64."""
        import pyarrow as pa

        texts, many = pa.string(), pa.list_(pa.string())
        kinds = {"text": texts, "label": texts, "number": pa.float64(), "labels": many, "words": many}
        columns = [(name, kinds[column.kind]) for name, column in self.layout.columns.items()]
        return pa.schema([*columns, ("row", pa.int64())])

    def write(self, batch: TokenBatch, keep: np.ndarray, rows: np.ndarray, number: np.ndarray) -> None:
        """Store the examples to ``keep``."""
        import pyarrow as pa

        assert isinstance(batch, TableBatch)
        kept = [
            {**value, "row": int(place)}
            for value, place, used in zip(batch.values, number, keep, strict=True)
            if used
        ]
        for row in kept:
            self.classes.update(self.layout.classes_of(row))
        if kept:
            self._writer.write_batch(pa.RecordBatch.from_pylist(kept, schema=self._schema))


class TableBuilder(Builder):
    """Rows in the layouts of a method; all sources must have the same one."""

    rows_at_once = BATCH_ROWS
    """Rows that are held in memory together."""

    def __init__(
        self, recipe: Recipe, model_dir: Path, out: Path, progress: Callable[[int], None] | None
    ) -> None:
        super().__init__(recipe, out, progress)
        self.tokenizer = TokenizerFiles.read(model_dir).load()
        self.layout: Layout | None = None
        self.write_pair = wrapping(recipe, model_dir)

    @classmethod
    def decided_by(cls, recipe: Recipe, model_dir: Path) -> dict[str, Any]:
        """What is written around the texts."""
        write = wrapping(recipe, model_dir)
        return {} if write is None else {"asked": write("", "")}

    def guess(self, source: str, rows: list[RawRow]) -> FormatGuess:
        """The method's layout that the rows have. Raises WhetError ``data.format``."""
        method = self.recipe.method
        found = find_layout(method, rows, self.section.columns)
        if found is None:
            fields = ", ".join(list(rows[0].value)[:8]) or "none"
            raise WhetError(
                "data.format",
                f"The rows of {source} have no layout that method.kind={method.kind} learns from; their "
                f"fields are: {fields}.",
                f"It reads {wanted_layouts(method)}. Name other columns with data.columns.NAME=COLUMN.",
            )
        if self.layout is not None and list(found.columns) != list(self.layout.columns):
            raise WhetError(
                "data.format",
                f"The rows of {source} are {found.name} ({', '.join(found.columns)}), those before "
                f"{self.layout.name} ({', '.join(self.layout.columns)}).",
                "Give all sources of data.train and data.eval the same columns.",
            )
        self.layout = found
        columns = ", ".join(f"{name} from {column.field}" for name, column in found.columns.items())
        return FormatGuess(format=None, other=found.name, confidence=1.0, reason=f"{found.name}: {columns}")

    def batches(
        self, rows: Iterable[RawRow | BadRow], guess: FormatGuess, role: Role
    ) -> Iterator[tuple[Role, Layout, list[RawRow | BadRow]]]:
        """As many rows each as are held at once."""
        assert self.layout is not None
        stream = iter(rows)
        while batch := list(islice(stream, self.rows_at_once)):
            yield role, self.layout, batch

    def work(self, batches: Iterable[Any]) -> Iterator[TokenBatch]:
        """Read each row's columns and count its tokens."""
        for role, layout, rows in batches:
            yield self._work(role, layout, rows)

    def split(self, name: str, drop: Iterable[str] = (), leaked: Iterable[int] = ()) -> SplitWriter:
        """Of the layout's columns."""
        assert self.layout is not None
        return TableWriter(self.layout, self.out / name, drop, leaked)

    def _work(self, role: Role, layout: Layout, rows: list[RawRow | BadRow]) -> TableBatch:
        done = TableBatch(role, read=len(rows))
        for row in rows:
            if isinstance(row, BadRow):
                done.bad.append(row)
                continue
            try:
                value = self.value_of(row, layout)
            except RowError as error:
                done.bad.append(BadRow(row.file, row.line, error.reason, preview_of(row.value)))
                continue
            if not done.files or done.files[-1][1] != row.file:
                done.files.append((len(done.lines), row.file))
            done.lines.append(row.line)
            done.hashes.append(self.key_of(value))
            done.languages.append("")
            done.values.append(value)
        self._count(done, layout)
        return done

    def value_of(self, row: RawRow, layout: Layout) -> dict[str, Any]:
        """A row's stored columns. Raises RowError."""
        return layout.read(renamed(row.value, self.section.columns))

    def key_of(self, value: dict[str, Any]) -> int:
        """What two rows have in common that are the same."""
        return hash_of("\x1f".join(map(str, value.values())))

    def _count(self, done: TableBatch, layout: Layout) -> None:
        """Tokens of each row: all of its texts, each cut to the longest that is trained."""
        most, each = self.recipe.model.max_length, layout.inputs_per_row
        inputs = list(chain.from_iterable(map(layout.inputs, done.values)))
        write = self.write_pair
        if write is not None:
            inputs = [one if isinstance(one, str) else write(*one) for one in inputs]
        encoded = self.tokenizer.encode_batch(inputs)
        for number in range(len(done.values)):
            parts = encoded[number * each : (number + 1) * each]
            ids = [one.ids[:most] for one in parts]
            longest = max(len(one.ids) for one in parts)
            done.owners.append(number)
            done.lengths.append(longest)
            done.sizes.append(sum(map(len, ids)))
            done.supervised.append(done.sizes[-1])
            done.flags.append(Odd.truncated_rows if longest > most else Odd(0))
            for one in ids:
                done.ids.extend(one)

    def report(self, train: SplitWriter, seconds: float) -> DataReport:
        """Counts; no template writes these rows."""
        if train.counter.counts["rows"] == 0:
            raise self.nothing_usable("Check data.train, data.columns and data.eval_fraction.")
        return DataReport(
            labels=self._labels(train),
            **self.counts(train, seconds),
            texts_per_row=self.layout.inputs_per_row if self.layout else 1,
        )

    def _labels(self, train: SplitWriter) -> dict[str, int]:
        """How often each class occurs in the training rows; those of held-out rows alone: 0.

        Raises WhetError ``data.one_class``.
        """
        if self.layout is None or self.layout.classes is None:
            return {}
        assert isinstance(train, TableWriter)
        held = self.eval.classes if isinstance(self.eval, TableWriter) else Counter()
        if len(train.classes) < 2:
            seen = ", ".join(map(repr, train.classes)) or "none"
            raise WhetError(
                "data.one_class",
                f"The training rows name fewer than two classes in {self.layout.classes!r}: {seen}.",
                "Add rows of the other classes; a model cannot learn a difference that its rows do not show.",
            )
        return {**dict.fromkeys(sorted(held), 0), **dict(sorted(train.classes.items()))}
