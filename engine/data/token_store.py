"""Rows to token ids on disk, once for each content: streamed, cached by hash, memory-mapped by the worker."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WhetError
from ..methods.section import TEMPLATED
from ..recipe import Recipe
from ..runs.files import private_dir
from ..runs.manifest import SUMS, changed_files, write_manifest
from ..settings import settings
from .batch_process import in_order
from .batches import BatchTokenizer, RowBatch, TokenBatch, batches_of
from .building import Builder, sources_of
from .formats import FormatGuess, sniff
from .inspection import DataReport
from .mapping import find_mapping
from .rows import REFUSES, BadRow, RawRow
from .sources import Role, source_digest
from .split_writer import SplitWriter
from .template_facts import template_facts
from .tokenization import TokenizerFiles, template_source

VERSION = 4
"""Raise it when the same input would give other ids, labels or counts than before."""


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
    chats = recipe.method.kind in TEMPLATED
    template = template_source(recipe.data.template, files.chat_template) if chats else None
    template_digest = _hash(template) if template is not None else None
    builder = _builder(recipe)
    digest = _digest(recipe, files, template_digest, builder.decided_by(recipe, model_dir))
    target = settings().cache / "data" / digest
    if (target / "report.json").is_file() and (_is_damaged(target) or builder.content_digest(target) is None):
        shutil.rmtree(target)
    if not (target / "report.json").is_file():
        _build(recipe, model_dir, target, progress)
    if content := builder.content_digest(target):
        digest = _hash(digest + content)
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


def _is_damaged(target: Path) -> bool:
    """Whether files are gone or cut; their contents are looked at when a run begins."""
    return (target / SUMS).is_file() and bool(changed_files(target, content=False, manifest=SUMS))


def _build(recipe: Recipe, model_dir: Path, target: Path, progress: Callable[[int], None] | None) -> None:
    """Write into a folder of our own, then rename: readers see all of it or nothing."""
    private_dir(target.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        report = _builder(recipe)(recipe, model_dir, scratch, progress).run()
        text = report.model_dump_json(indent=1)
        (scratch / "report.json").write_text(text, encoding="utf-8")
        files = [path for path in scratch.rglob("*") if path.is_file()]
        sizes = {str(path.relative_to(scratch)): path.stat().st_size for path in files}
        write_manifest(scratch, SUMS, sizes)
        try:
            os.rename(scratch, target)
        except OSError:
            # Another process finished the same content first; its result is as good.
            if not (target / "report.json").is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _builder(recipe: Recipe) -> type[Any]:
    if recipe.method.kind == "sft":
        return _TokenBuilder
    if recipe.method.kind == "tts":
        from .spoken_store import SpokenBuilder

        return SpokenBuilder
    if recipe.method.kind == "speech":
        from .speech_store import SpeechBuilder

        return SpeechBuilder
    if recipe.method.kind == "vision":
        from .image_store import ImageBuilder

        return ImageBuilder
    if recipe.method.kind == "grpo":
        from .prompt_store import PromptBuilder

        return PromptBuilder
    if recipe.method.kind in TEMPLATED:
        from .answer_store import AnswerBuilder

        return AnswerBuilder
    from .table_store import TableBuilder

    return TableBuilder


class _TokenBuilder(Builder):
    """Chats and texts, rendered by the template and tokenised."""

    def __init__(
        self, recipe: Recipe, model_dir: Path, out: Path, progress: Callable[[int], None] | None
    ) -> None:
        super().__init__(recipe, out, progress)
        self.model_dir = model_dir
        self.tokens = BatchTokenizer.of_model(recipe, model_dir)
        self.tokenizer = self.tokens.tokenizer

    def split(self, name: str, drop: Iterable[str] = (), leaked: Iterable[int] = ()) -> SplitWriter:
        """Of token rows."""
        return SplitWriter(self.out / name, drop, leaked)

    def batches(self, rows: Iterable[RawRow | BadRow], guess: FormatGuess, role: Role) -> Iterator[RowBatch]:
        """Of one layout."""
        assert guess.format is not None
        for batch in batches_of(rows, guess.format, role):
            batch.look_only = self.stops
            yield batch

    def work(self, batches: Iterable[RowBatch]) -> Iterator[TokenBatch]:
        """By several processes where there is much."""
        return in_order(batches, self.tokens, self.model_dir)

    def guess(self, source: str, rows: list[RawRow]) -> FormatGuess:
        """As the recipe says, else as most rows look."""
        guess = sniff(rows, self.section.columns)
        if self.section.format != "auto":
            reason = f"set by data.format; the rows: {guess.reason}"
            share = guess.confidence if guess.format == self.section.format else 0.0
            guess = FormatGuess(format=self.section.format, confidence=share, reason=reason)
        if guess.format is None:
            raise WhetError(
                "data.format",
                f"The rows of {source} have no known layout: {guess.reason}.",
                _advice(guess, rows),
            )
        return guess

    def report(self, train: SplitWriter, seconds: float) -> DataReport:
        """With what the template and the tokenizer write."""
        renderer, tokenizer = self.tokenizer.renderer, self.tokenizer
        origin = self.section.template or ("model" if renderer is not None else None)
        end = renderer.end_of_turn if renderer else tokenizer.eos_token
        known = template_facts(tokenizer)
        if train.counter.counts["rows"] == 0:
            refuses = any(REFUSES in one.reason for one in self.bad[:1])
            raise self.nothing_usable(
                f"whet's own template of this format takes more: data.template={known.nearest}"
                if origin == "model" and refuses and known is not None and known.family
                else "Check data.train, data.format and data.eval_fraction."
            )
        return DataReport(
            **self.counts(train, seconds),
            template=origin,
            bos_token=tokenizer.bos_token,
            end_of_turn=end,
            end_id=tokenizer.tokenizer.token_to_id(end) if end else None,
            eos_id=tokenizer.eos_id,
            template_facts=known,
        )


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


def _digest(recipe: Recipe, files: TokenizerFiles, template_digest: str | None, more: dict[str, Any]) -> str:
    """Key of the cache: all that decides the ids, labels and counts."""
    section = recipe.data
    sources: Iterator[str] = (source_digest(source, section) for source in sources_of(section))
    facts = {
        "version": VERSION,
        "train": [sources_of(section), *sources],
        "eval": source_digest(section.eval, section, "eval") if section.eval is not None else None,
        "section": section.model_dump(mode="json", exclude={"streaming", "template"}),
        "tokenizer": files.digest(),
        "template": template_digest,
        "max_length": recipe.model.max_length,
        "supervise": recipe.method.supervise,
        **({} if recipe.method.kind == "sft" else {"method": recipe.method.kind}),
        "seed": recipe.training.seed if section.eval_fraction > 0 else None,
        **more,
    }
    return _hash(json.dumps(facts, sort_keys=True))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
