"""One pass over all sources of a recipe: what can be used goes to its split, what cannot is named."""

from __future__ import annotations

import hashlib
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import WhetError
from ..recipe import DataSection, Recipe
from .batches import TokenBatch
from .formats import FormatGuess
from .inspection import KEPT_BAD_ROWS, KEPT_EXAMPLES, BadRowRecord, DataReport, rows_also_in
from .rows import BadRow, RawRow
from .sources import Role, iter_rows
from .split_writer import SplitWriter

SNIFFED_ROWS = 300
NAMED_BAD_ROWS = 5
PROGRESS_ROWS = 1000
EVAL_MARK = " (eval)"


class Builder(ABC):
    """Reads sources, held-out ones first; what its rows are and how they are stored is the subclass's.

    Args:
        recipe: uses its data, method, model.max_length and training.seed.
        out: folder for ``train.arrow`` and ``eval.arrow``.
        progress: called with the count of rows read so far, about every thousand rows.
    """

    def __init__(self, recipe: Recipe, out: Path, progress: Callable[[int], None] | None) -> None:
        self.recipe, self.section, self.out = recipe, recipe.data, out
        self.progress = progress or (lambda rows: None)
        self.formats: dict[str, FormatGuess] = {}
        self.bad: list[BadRowRecord] = []
        self.bad_count = 0
        self.read = 0
        self.eval: SplitWriter | None = None
        self.train: SplitWriter | None = None

    @classmethod
    def decided_by(cls, recipe: Recipe, model_dir: Path) -> dict[str, Any]:
        """What else decides the stored rows, beside sources, tokenizer and template; JSON values."""
        return {}

    @classmethod
    def content_digest(cls, folder: Path) -> str | None:
        """Hash of files that stored rows only name, as in ``folder``; None when they have changed."""
        return ""

    @abstractmethod
    def guess(self, source: str, rows: list[RawRow]) -> FormatGuess:
        """What the first good rows of a source are. Raises WhetError ``data.format`` where nothing fits."""

    @abstractmethod
    def batches(self, rows: Iterable[RawRow | BadRow], guess: FormatGuess, role: Role) -> Iterable[Any]:
        """Rows in the units that :meth:`work` takes."""

    @abstractmethod
    def work(self, batches: Iterable[Any]) -> Iterator[TokenBatch]:
        """What becomes of them, in order."""

    @abstractmethod
    def split(self, name: str, drop: Iterable[str] = (), leaked: Iterable[int] = ()) -> SplitWriter:
        """A writer of ``name``; called when the first rows of the split were looked at."""

    @abstractmethod
    def report(self, train: SplitWriter, seconds: float) -> DataReport:
        """What was seen."""

    def counts(self, train: SplitWriter, seconds: float) -> dict[str, Any]:
        """What a report says of any rows, as its fields."""
        held = self.eval.counter if self.eval is not None else None
        leaked = rows_also_in(held.hashes, train.counter.hashes) if held else []
        return {
            "formats": dict(sorted(self.formats.items(), key=lambda one: one[0].endswith(EVAL_MARK))),
            "bad_rows": self.bad_count,
            "bad": self.bad,
            "train": train.counter.report(),
            "eval": held.report() if held else None,
            "eval_in_train": len(leaked),
            "eval_in_train_examples": [held.locate(row) for row in leaked[:KEPT_EXAMPLES]] if held else [],
            "max_length": self.recipe.model.max_length,
            "supervise": self.recipe.method.supervise,
            "seconds": round(seconds, 3),
        }

    def nothing_usable(self, hint: str) -> WhetError:
        """The error of training rows that are all bad or left out."""
        first = "".join(f", the first: {one.file}:{one.line}: {one.reason}" for one in self.bad[:1])
        found = f"No usable training row among {self.read:,} ({self.bad_count:,} bad{first})."
        return WhetError("data.empty", found, hint)

    @property
    def stops(self) -> bool:
        """After the first bad row of a plan that stops, only a few more are looked for, to be named."""
        return self.bad_count > 0 and self.section.bad_rows == "stop"

    def run(self) -> DataReport:
        """Read everything. Raises WhetError ``data.*``."""
        started = time.monotonic()
        try:
            # Held-out rows come first: leaving leaked ones out of training needs to know them.
            if self.section.eval is not None:
                self._read_sources([self.section.eval], "eval")
            self._read_sources(sources_of(self.section), "train")
        finally:
            for split in (self.train, self.eval):
                if split is not None:
                    split.close()
        self._refuse_bad_rows()
        assert self.train is not None
        return self.report(self.train, time.monotonic() - started)

    def _read_sources(self, sources: list[str], role: Role) -> None:
        rows = itertools.chain.from_iterable(self._source(source, role) for source in sources)
        for batch in self.work(rows):
            self._take(batch)

    def _source(self, source: str, role: Role) -> Iterator[Any]:
        rows = iter_rows(source, self.section, role)
        head = list(itertools.islice(rows, SNIFFED_ROWS))
        good = [row for row in head if isinstance(row, RawRow)]
        if not good:
            self._no_rows(source, head)
        guess = self.guess(source, good)
        self.formats[source if role == "train" else source + EVAL_MARK] = guess
        self._open(role)
        yield from self.batches(itertools.chain(head, rows), guess, role)

    def _open(self, role: Role) -> None:
        if self.eval is None and (role == "eval" or self.section.eval_fraction > 0):
            self.eval = self.split("eval.arrow")
        if self.train is None and role == "train":
            leaked = self.eval.counter.hashes if self.eval is not None else ()
            self.train = self.split("train.arrow", self.section.drop, leaked)

    def _take(self, batch: TokenBatch) -> None:
        before = self.read
        self.read += batch.read
        for row in batch.bad:
            self._bad_row(row)
        if batch.role == "eval":
            assert self.eval is not None
            self.eval.add(batch)
        elif self.section.eval_fraction > 0:
            self._share_out(batch)
        else:
            assert self.train is not None
            self.train.add(batch)
        if self.read // PROGRESS_ROWS > before // PROGRESS_ROWS:
            self.progress(self.read)

    def _share_out(self, batch: TokenBatch) -> None:
        import numpy as np

        assert self.train is not None and self.eval is not None
        seed, fraction = self.recipe.training.seed, self.section.eval_fraction
        out = np.array([held_out(key, seed, fraction) for key in batch.wholes or batch.hashes], dtype=bool)
        self.eval.add(batch, out)
        self.train.add(batch, ~out)

    def _no_rows(self, source: str, head: list[RawRow | BadRow]) -> None:
        for row in head:
            if isinstance(row, BadRow):
                self._bad_row(row)
        self._refuse_bad_rows()
        raise WhetError(
            "data.empty",
            f"{source} holds no usable row{f': {self.bad[0].reason}' if self.bad else ''}.",
            "Check the file; `whet data SOURCE` shows what is read.",
        )

    def _bad_row(self, row: BadRow) -> None:
        self.bad_count += 1
        if len(self.bad) < KEPT_BAD_ROWS:
            record = BadRowRecord(file=row.file, line=row.line, reason=row.reason, preview=row.preview)
            self.bad.append(record)
        if self.section.bad_rows == "stop" and self.bad_count >= NAMED_BAD_ROWS:
            self._refuse_bad_rows()

    def _refuse_bad_rows(self) -> None:
        if self.section.bad_rows == "skip" or not self.bad:
            return
        named = "; ".join(f"{one.file}:{one.line}: {one.reason}" for one in self.bad[:NAMED_BAD_ROWS])
        count = f"{self.bad_count} rows" if self.bad_count > 1 else "One row"
        raise WhetError(
            "data.bad_rows",
            f"{count} of the first {max(self.read, self.bad_count):,} cannot be used: {named}.",
            "Repair the file, or leave such rows out and have them reported with data.bad_rows=skip.",
        )


def held_out(key: int, seed: int, fraction: float) -> bool:
    """Whether the row of this content hash is held out: fixed by content and seed, not by the row's place."""
    mixed = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(mixed, "little") < fraction * 2**64


def sources_of(section: DataSection) -> list[str]:
    """Of the training rows."""
    return [section.train] if isinstance(section.train, str) else list(section.train)
