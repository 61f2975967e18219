"""Rows to token ids on disk, once for each content: streamed, cached by hash, memory-mapped by the worker."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import WhetError
from ..recipe import DataSection, Recipe
from ..settings import settings
from .formats import Example, FormatGuess, sniff, to_example
from .inspection import KEPT_BAD_ROWS, KEPT_EXAMPLES, BadRowRecord, DataReport, rows_also_in
from .marker_scan import MarkerScan
from .rows import BadRow, RawRow, RowError, preview_of
from .sources import Role, iter_rows, source_digest
from .split_writer import PendingRow, SplitWriter
from .tokenization import RowTokenizer, TokenizerFiles, template_source

VERSION = 1
"""Raise it when the same input would give other ids, labels or counts than before."""

SNIFFED_ROWS = 300
BATCH = 1000
NAMED_BAD_ROWS = 5


@dataclass(frozen=True)
class PreparedData:
    """Tokenised data on disk: Arrow streams that ``datasets.Dataset.from_file`` memory-maps.

    Columns: input_ids list<int32>, labels list<int32>, row int64 (number of the usable row in its split,
    from 0).
    """

    dir: Path
    digest: str
    template_digest: str | None
    train: Path
    eval: Path | None
    report: DataReport


def prepare(recipe: Recipe, model_dir: Path, progress: Callable[[int], None] | None = None) -> PreparedData:
    """Read, check, render, mask and tokenise every row, or find that it was done before.

    Args:
        recipe: uses its data, method, model.max_length and training.seed.
        model_dir: directory with the tokenizer's files.
        progress: called with the count of rows read so far, about every thousand rows.

    Raises:
        WhetError: ``data.*`` (not found, unknown format, bad rows with ``bad_rows: stop``, nothing usable),
            ``tokenizer.*``, ``template.*``.
    """
    files = TokenizerFiles.read(model_dir)
    template = template_source(recipe.data.template, files.chat_template)
    template_digest = _hash(template) if template is not None else None
    digest = _digest(recipe, files, template_digest)
    target = settings().cache / "data" / digest
    if not (target / "report.json").is_file():
        _build(recipe, files, target, progress)
    report = DataReport.model_validate_json((target / "report.json").read_text(encoding="utf-8"))
    evaluation = target / "eval.arrow"
    return PreparedData(
        dir=target,
        digest=digest,
        template_digest=template_digest,
        train=target / "train.arrow",
        eval=evaluation if evaluation.is_file() else None,
        report=report,
    )


def _build(
    recipe: Recipe, files: TokenizerFiles, target: Path, progress: Callable[[int], None] | None
) -> None:
    """Write into a folder of our own, then rename: readers see all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        report = _Builder(recipe, files, scratch, progress).run()
        text = report.model_dump_json(indent=1)
        (scratch / "report.json").write_text(text, encoding="utf-8")
        try:
            os.rename(scratch, target)
        except OSError:
            # Another process finished the same content first; its result is as good.
            if not (target / "report.json").is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Builder:
    """One pass over all sources."""

    def __init__(
        self, recipe: Recipe, files: TokenizerFiles, out: Path, progress: Callable[[int], None] | None
    ) -> None:
        self.recipe, self.section = recipe, recipe.data
        self.progress = progress or (lambda rows: None)
        self.tokenizer = RowTokenizer.from_files(files, recipe.data.template)
        self.formats: dict[str, FormatGuess] = {}
        self.bad: list[BadRowRecord] = []
        self.bad_count = 0
        self.read = 0
        scan = MarkerScan(self.tokenizer.tokenizer)
        shared = (self.tokenizer, recipe.model.max_length, recipe.method.supervise, scan, self._bad_row)
        self.train = SplitWriter(out / "train.arrow", *shared)
        holds_out = recipe.data.eval is not None or recipe.data.eval_fraction > 0
        self.eval = SplitWriter(out / "eval.arrow", *shared) if holds_out else None
        self.own_template = files.chat_template is not None

    def run(self) -> DataReport:
        started = time.monotonic()
        try:
            for source in _sources(self.section):
                self._read_source(source, "train")
            if self.section.eval is not None:
                self._read_source(self.section.eval, "eval")
        finally:
            self.train.close()
            if self.eval is not None:
                self.eval.close()
        self._refuse_bad_rows()
        return self._report(time.monotonic() - started)

    def _read_source(self, source: str, role: Role) -> None:
        rows = iter_rows(source, self.section, role)
        head = list(itertools.islice(rows, SNIFFED_ROWS))
        guess = self._format(source, role, head)
        for row in itertools.chain(head, rows):
            self.read += 1
            if self.read % BATCH == 0:
                self.progress(self.read)
            if isinstance(row, BadRow):
                self._bad_row(row)
                continue
            try:
                assert guess.format is not None
                example = to_example(row, guess.format, self.section)
            except RowError as error:
                self._bad_row(BadRow(row.file, row.line, error.reason, preview_of(row.value)))
                continue
            # After the first bad row of a plan that stops, only look for a few more to name.
            if self.bad_count == 0 or self.section.bad_rows == "skip":
                self._add(example, row, role)

    def _add(self, example: Example, row: RawRow, role: Role) -> None:
        key = content_hash(example)
        split = self.eval if role == "eval" else self.train
        if role == "train" and held_out(key, self.recipe.training.seed, self.section.eval_fraction):
            split = self.eval
        assert split is not None
        split.add(PendingRow(example, row.file, row.line, key))

    def _format(self, source: str, role: Role, head: list[RawRow | BadRow]) -> FormatGuess:
        good = [row for row in head if isinstance(row, RawRow)]
        guess = sniff(good, self.section.columns)
        if self.section.format != "auto":
            reason = f"set by data.format; the rows: {guess.reason}"
            share = guess.confidence if guess.format == self.section.format else 0.0
            guess = FormatGuess(format=self.section.format, confidence=share, reason=reason)
        if not good:
            self._no_rows(source, head)
        if guess.format is None:
            raise WhetError(
                "data.format",
                f"The rows of {source} have no known layout: {guess.reason}.",
                "Name the columns, e.g. data.format=alpaca data.columns.instruction=question "
                "data.columns.output=answer.",
            )
        self.formats[source if role == "train" else f"{source} (eval)"] = guess
        return guess

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

    def _report(self, seconds: float) -> DataReport:
        leaked = rows_also_in(self.eval.counter.hashes, self.train.counter.hashes) if self.eval else []
        renderer = self.tokenizer.renderer
        origin = self.section.template or ("model" if self.own_template else None)
        if self.train.counter.counts.get("rows", 0) == 0:
            first = "; ".join(f", the first: {one.file}:{one.line}: {one.reason}" for one in self.bad[:1])
            raise WhetError(
                "data.empty",
                f"No usable training row among {self.read:,} ({self.bad_count:,} bad{first}).",
                "Check data.train, data.format and data.eval_fraction.",
            )
        return DataReport(
            formats=self.formats,
            bad_rows=self.bad_count,
            bad=self.bad,
            train=self.train.counter.report(),
            eval=self.eval.counter.report() if self.eval else None,
            eval_in_train=len(leaked),
            eval_in_train_examples=[self.eval.counter.locate(row) for row in leaked[:KEPT_EXAMPLES]]
            if self.eval
            else [],
            max_length=self.recipe.model.max_length,
            supervise=self.recipe.method.supervise,
            template=origin,
            bos_token=self.tokenizer.bos_token,
            end_of_turn=renderer.end_of_turn if renderer else self.tokenizer.eos_token,
            seconds=round(seconds, 3),
        )


def content_hash(example: Example) -> int:
    """64 bits of an example's content; the same text in the same roles gives the same number."""
    return int.from_bytes(hashlib.blake2b(example.content().encode(), digest_size=8).digest(), "little")


def held_out(key: int, seed: int, fraction: float) -> bool:
    """Whether the row of this content hash is held out: fixed by content and seed, not by the row's place."""
    mixed = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(mixed, "little") < fraction * 2**64


def _sources(section: DataSection) -> list[str]:
    return [section.train] if isinstance(section.train, str) else list(section.train)


def _digest(recipe: Recipe, files: TokenizerFiles, template_digest: str | None) -> str:
    """Key of the cache: all that decides the ids, labels and counts."""
    section = recipe.data
    sources: Iterator[str] = (source_digest(source, section) for source in _sources(section))
    facts = {
        "version": VERSION,
        "train": [_sources(section), *sources],
        "eval": source_digest(section.eval, section, "eval") if section.eval is not None else None,
        "section": section.model_dump(mode="json", exclude={"streaming", "template"}),
        "tokenizer": files.digest(),
        "template": template_digest,
        "max_length": recipe.model.max_length,
        "supervise": recipe.method.supervise,
        "seed": recipe.training.seed if section.eval_fraction > 0 else None,
    }
    return _hash(json.dumps(facts, sort_keys=True))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
