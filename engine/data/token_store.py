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
from .batch_process import in_order
from .batches import BatchTokenizer, RowBatch, TokenBatch, batches_of
from .formats import FormatGuess, sniff
from .inspection import KEPT_BAD_ROWS, KEPT_EXAMPLES, BadRowRecord, DataReport, rows_also_in
from .mapping import find_mapping
from .rows import REFUSES, BadRow, RawRow
from .sources import Role, iter_rows, source_digest
from .split_writer import SplitWriter
from .template_facts import template_facts
from .tokenization import TokenizerFiles, template_source

VERSION = 3
"""Raise it when the same input would give other ids, labels or counts than before."""

SNIFFED_ROWS = 300
NAMED_BAD_ROWS = 5
PROGRESS_ROWS = 1000
EVAL_MARK = " (eval)"


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
        _build(recipe, model_dir, target, progress)
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


def _build(recipe: Recipe, model_dir: Path, target: Path, progress: Callable[[int], None] | None) -> None:
    """Write into a folder of our own, then rename: readers see all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        report = _Builder(recipe, model_dir, scratch, progress).run()
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
        self, recipe: Recipe, model_dir: Path, out: Path, progress: Callable[[int], None] | None
    ) -> None:
        self.recipe, self.section, self.model_dir, self.out = recipe, recipe.data, model_dir, out
        self.progress = progress or (lambda rows: None)
        self.batches = BatchTokenizer.of_model(recipe, model_dir)
        self.tokenizer = self.batches.tokenizer
        self.formats: dict[str, FormatGuess] = {}
        self.bad: list[BadRowRecord] = []
        self.bad_count = 0
        self.read = 0
        holds_out = recipe.data.eval is not None or recipe.data.eval_fraction > 0
        self.eval = SplitWriter(out / "eval.arrow") if holds_out else None
        self.train: SplitWriter | None = None

    def run(self) -> DataReport:
        started = time.monotonic()
        try:
            # Held-out rows come first: leaving leaked ones out of training needs to know them.
            if self.section.eval is not None:
                self._read_sources([self.section.eval], "eval")
            leaked = self.eval.counter.hashes if self.eval is not None else ()
            self.train = SplitWriter(self.out / "train.arrow", self.section.drop, leaked)
            self._read_sources(_sources(self.section), "train")
        finally:
            for split in (self.train, self.eval):
                if split is not None:
                    split.close()
        self._refuse_bad_rows()
        return self._report(self.train, time.monotonic() - started)

    def _read_sources(self, sources: list[str], role: Role) -> None:
        rows = itertools.chain.from_iterable(self._batches(source, role) for source in sources)
        for batch in in_order(rows, self.batches, self.model_dir):
            self._take(batch)

    def _batches(self, source: str, role: Role) -> Iterator[RowBatch]:
        rows = iter_rows(source, self.section, role)
        head = list(itertools.islice(rows, SNIFFED_ROWS))
        guess = self._format(source, role, head)
        assert guess.format is not None
        for batch in batches_of(itertools.chain(head, rows), guess.format, role):
            # After the first bad row of a plan that stops, only look for a few more to name.
            batch.look_only = self.bad_count > 0 and self.section.bad_rows == "stop"
            yield batch

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
        out = np.array([held_out(key, seed, fraction) for key in batch.hashes], dtype=bool)
        self.eval.add(batch, out)
        self.train.add(batch, ~out)

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
                _advice(guess, good),
            )
        self.formats[source if role == "train" else source + EVAL_MARK] = guess
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

    def _report(self, train: SplitWriter, seconds: float) -> DataReport:
        leaked = rows_also_in(self.eval.counter.hashes, train.counter.hashes) if self.eval else []
        renderer, tokenizer = self.tokenizer.renderer, self.tokenizer
        origin = self.section.template or ("model" if renderer is not None else None)
        end = renderer.end_of_turn if renderer else tokenizer.eos_token
        known = template_facts(tokenizer)
        if train.counter.counts["rows"] == 0:
            first = "; ".join(f", the first: {one.file}:{one.line}: {one.reason}" for one in self.bad[:1])
            refused = origin == "model" and REFUSES in first and known is not None and known.family
            raise WhetError(
                "data.empty",
                f"No usable training row among {self.read:,} ({self.bad_count:,} bad{first}).",
                f"whet's own template of this format takes more: data.template={known.nearest}"
                if known and refused
                else "Check data.train, data.format and data.eval_fraction.",
            )
        return DataReport(
            formats=dict(sorted(self.formats.items(), key=lambda one: one[0].endswith(EVAL_MARK))),
            bad_rows=self.bad_count,
            bad=self.bad,
            train=train.counter.report(),
            eval=self.eval.counter.report() if self.eval else None,
            eval_in_train=len(leaked),
            eval_in_train_examples=[self.eval.counter.locate(row) for row in leaked[:KEPT_EXAMPLES]]
            if self.eval
            else [],
            max_length=self.recipe.model.max_length,
            supervise=self.recipe.method.supervise,
            template=origin,
            bos_token=tokenizer.bos_token,
            end_of_turn=end,
            end_id=tokenizer.tokenizer.token_to_id(end) if end else None,
            eos_id=tokenizer.eos_id,
            template_facts=known,
            seconds=round(seconds, 3),
        )


def held_out(key: int, seed: int, fraction: float) -> bool:
    """Whether the row of this content hash is held out: fixed by content and seed, not by the row's place."""
    mixed = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(mixed, "little") < fraction * 2**64


def _advice(guess: FormatGuess, rows: list[RawRow]) -> str:
    """How to have rows of an unknown layout read."""
    mapping = find_mapping(rows)
    if mapping is not None:
        columns = " ".join(f"data.columns.{field}={name}" for field, name in mapping.columns.items())
        return f"Most probably: data.format={mapping.format} {columns}"
    if guess.other == "ratings":
        return "Keep the rows whose label is true, then set data.format=prompt_completion."
    if guess.other in ("pairs", "triplets"):
        return "They are made for training an embedding model, not one that answers."
    return (
        "Name the columns, e.g. data.format=alpaca data.columns.instruction=question "
        "data.columns.output=answer."
    )


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
