"""Conversations with images on disk: ids and labels with the images' places already in them.

Images themselves stay where they are; a row holds their paths and hashes, or their bytes where they came
inside the row. What they will cost is counted in their tokens and in the patches that the encoder reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WhetError
from ..models.image_tokens import fitted_size, read_image_tokens
from ..recipe import Recipe, VisionSection
from .batches import TokenBatch, hash_of
from .building import Builder
from .formats import FormatGuess, renamed
from .image_rows import conversation_of, has_images, reads
from .image_text import ConversationEncoder, ImageRow, encoder_of
from .images import Picture, digest_of, find_picture, look_at, side_by_side
from .inspection import DataReport, ImageCounts
from .masking import IGNORE
from .messages import Message, alternates
from .pairs import SHARE
from .row_flags import Odd
from .rows import BadRow, RawRow, RowError, preview_of
from .sources import Role
from .split_writer import SplitWriter
from .template_facts import template_facts
from .tokenization import template_source
from .tokenizer_files import TokenizerFiles

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

BATCH = 64
"""Rows at once: they may hold their images."""
SEEN = "images.json"
"""Beside the rows: each file among their images, with its size and time, and the hash of all images."""


@dataclass(slots=True)
class ImageBatch(TokenBatch):
    """A batch with its rows' images."""

    rows: list[ImageRow] = field(default_factory=list)
    pictures: list[list[Picture]] = field(default_factory=list)
    patches: list[int] = field(default_factory=list)


class ImageWriter(SplitWriter):
    """Stores input_ids, labels, images (path, data, digest) and row."""

    def __init__(self, path: Path, drop: Iterable[str], leaked: Iterable[int]) -> None:
        self.images = ImageCounts()
        self.files: dict[str, list[int]] = {}
        self.hashes = hashlib.blake2b(digest_size=16)
        super().__init__(path, drop, leaked)

    def schema(self) -> pyarrow.Schema:
        """Of the stream."""
        import pyarrow as pa

        picture = pa.struct([("path", pa.string()), ("data", pa.binary()), ("digest", pa.string())])
        ids = pa.list_(pa.int32())
        return pa.schema(
            [("input_ids", ids), ("labels", ids), ("images", pa.list_(picture)), ("row", pa.int64())]
        )

    def write(self, batch: TokenBatch, keep: np.ndarray, rows: np.ndarray, number: np.ndarray) -> None:
        """Store the examples to ``keep``."""
        import pyarrow as pa

        assert isinstance(batch, ImageBatch)
        kept = [place for place in range(len(batch.rows)) if keep[place]]
        for place in kept:
            self._count(batch, place)
        values = [
            {
                "input_ids": batch.rows[place].input_ids,
                "labels": batch.rows[place].labels,
                "images": [picture.stored() for picture in batch.pictures[place]],
                "row": int(number[place]),
            }
            for place in kept
        ]
        if values:
            self._writer.write_batch(pa.RecordBatch.from_pylist(values, schema=self._schema))

    def _count(self, batch: ImageBatch, place: int) -> None:
        pictures, row, was = batch.pictures[place], batch.rows[place], self.images
        before = next(at for at, label in enumerate(row.labels) if label != IGNORE)
        earlier = was.fewest_before_answers if was.most_supervised_in_a_row else before
        self.images = ImageCounts(
            images=was.images + len(pictures),
            rows=was.rows + bool(pictures),
            tokens=was.tokens + row.image_tokens,
            most_in_a_row=max(was.most_in_a_row, len(pictures)),
            most_patches_in_a_row=max(was.most_patches_in_a_row, batch.patches[place]),
            fewest_before_answers=min(earlier, before),
            most_supervised_in_a_row=max(was.most_supervised_in_a_row, batch.supervised[place]),
        )
        for picture in pictures:
            self.hashes.update(picture.digest.encode())
            if picture.path is not None:
                stat = Path(picture.path).stat()
                self.files[picture.path] = [stat.st_size, stat.st_mtime_ns]


class ImageBuilder(Builder):
    """Reads rows of a vision method."""

    def __init__(
        self, recipe: Recipe, model_dir: Path, out: Path, progress: Callable[[int], None] | None
    ) -> None:
        super().__init__(recipe, out, progress)
        assert isinstance(recipe.method, VisionSection)
        self.method = recipe.method
        self.encoder = folder_encoder(model_dir, recipe.data.template)

    @classmethod
    def decided_by(cls, recipe: Recipe, model_dir: Path) -> dict[str, Any]:
        """Sizes of images, and how the model writes them."""
        assert isinstance(recipe.method, VisionSection)
        images = read_image_tokens(model_dir, TokenizerFiles.read(model_dir).load().id_to_token)
        return {"sides": [recipe.method.image_min, recipe.method.image_max], "images": asdict(images)}

    @classmethod
    def content_digest(cls, folder: Path) -> str | None:
        """See :func:`image_digest`."""
        return image_digest(folder)

    def guess(self, source: str, rows: list[RawRow]) -> FormatGuess:
        """Conversations, or questions with their answers. Raises WhetError ``data.format``."""
        values = [renamed(row.value, self.section.columns) for row in rows]
        fitting = sum(map(reads, values))
        if fitting < SHARE * len(values):
            fields = ", ".join(list(values[0])[:8]) or "none"
            raise WhetError(
                "data.format",
                f"The rows of {source} are no conversations with images; their fields are: {fields}.",
                "It reads messages whose content lists parts (image, text), messages with a column images, "
                "or image, prompt and completion. Name other columns with data.columns.",
            )
        shown = sum(map(has_images, values))
        reason = f"{fitting} of {len(values)} rows are conversations, {shown} of them with images"
        return FormatGuess(format="messages", confidence=fitting / len(values), reason=reason)

    def batches(
        self, rows: Iterable[RawRow | BadRow], guess: FormatGuess, role: Role
    ) -> Iterator[tuple[Role, list[RawRow | BadRow]]]:
        """A few rows each."""
        stream = iter(rows)
        while batch := list(islice(stream, BATCH)):
            yield role, batch

    def work(self, batches: Iterable[Any]) -> Iterator[TokenBatch]:
        """Look at each row's images and write them into its tokens."""
        for role, rows in batches:
            yield self._work(role, rows)

    def split(self, name: str, drop: Iterable[str] = (), leaked: Iterable[int] = ()) -> SplitWriter:
        """Of rows with images."""
        return ImageWriter(self.out / name, drop, leaked)

    def report(self, train: SplitWriter, seconds: float) -> DataReport:
        """With the template in force and what the images take."""
        assert isinstance(train, ImageWriter)
        if train.counter.counts["rows"] == 0:
            raise self.nothing_usable("Check data.train, data.columns and data.eval_fraction.")
        rows, renderer = self.encoder.rows, self.encoder.renderer
        end = renderer.end_of_turn
        splits = [one for one in (train, self.eval) if isinstance(one, ImageWriter)]
        seen = {"files": {}, "hash": [one.hashes.hexdigest() for one in splits]}
        for one in splits:
            seen["files"] |= one.files  # type: ignore[operator]
        (self.out / SEEN).write_text(json.dumps(seen), encoding="utf-8")
        return DataReport(
            **self.counts(train, seconds),
            images=train.images,
            template=self.section.template or "model",
            bos_token=rows.bos_token,
            end_of_turn=end,
            end_id=rows.tokenizer.token_to_id(end) if end else None,
            eos_id=rows.eos_id,
            template_facts=template_facts(rows),
        )

    def _work(self, role: Role, rows: list[RawRow | BadRow]) -> ImageBatch:
        done = ImageBatch(role, read=len(rows))
        for row in rows:
            if isinstance(row, BadRow):
                done.bad.append(row)
                continue
            try:
                value = renamed(row.value, self.section.columns)
                messages, named = conversation_of(value, self.section.system)
                file = Path(row.file)
                folder, local = file.absolute().parent, file.is_file()
                pictures = [find_picture(one, folder, files=local) for one in named]
                self._take_row(done, row, messages, pictures)
            except RowError as error:
                done.bad.append(BadRow(row.file, row.line, error.reason, preview_of(row.value)))
        return done

    def _take_row(
        self, done: ImageBatch, row: RawRow, messages: list[Message], pictures: list[Picture]
    ) -> None:
        """Append a row, cut to the longest that is trained. Raises RowError, nothing appended then."""
        method, most = self.method, self.recipe.model.max_length
        seen = side_by_side(look_at, pictures)
        sizes = [fitted_size(*size, method.image_min, method.image_max) for size in seen]
        whole = self.encoder.encode(messages, sizes)
        patches = sum(self.encoder.images.patches(*size) for size in sizes)
        flags, kept = cut_row(whole, most)
        if not alternates(messages):
            flags |= Odd.odd_roles
        if not done.files or done.files[-1][1] != row.file:
            done.files.append((len(done.lines), row.file))
        done.lines.append(row.line)
        content = "\x1e".join(f"{one['role']}\x1f{one['content']}" for one in messages)
        done.hashes.append(hash_of("\x1f".join([content, *(one.digest for one in pictures)])))
        done.languages.append("")
        done.owners.append(len(done.lines) - 1)
        done.lengths.append(len(whole.input_ids))
        done.sizes.append(len(kept.input_ids))
        done.supervised.append(len(kept.labels) - kept.labels.count(IGNORE))
        done.flags.append(flags)
        done.ids.extend(kept.input_ids)
        done.rows.append(kept)
        done.pictures.append(pictures)
        done.patches.append(patches)


def cut_row(row: ImageRow, most: int) -> tuple[Odd, ImageRow]:
    """The row's first tokens, and what they lost.

    Raises:
        RowError: its images would be cut, or nothing is left to learn.
    """
    if row.image_end > most:
        raise RowError(
            f"its images reach to token {row.image_end:,} ({row.image_tokens:,} are of images), and the "
            f"longest row has {most:,}: raise model.max_length, or lower method.image_max"
        )
    if all(label == IGNORE for label in row.labels):
        raise RowError("the assistant says nothing in it")
    if len(row.input_ids) <= most:
        return Odd(0), row
    labels = row.labels[:most]
    if all(label == IGNORE for label in labels):
        raise RowError(
            f"its first {most:,} tokens, the longest that is trained, hold no answer: it has "
            f"{len(row.input_ids):,}, {row.image_tokens:,} of images"
        )
    lost = any(label != IGNORE for label in row.labels[most:])
    cut = ImageRow(row.input_ids[:most], labels, row.image_end, row.image_tokens)
    return Odd.truncated_rows | (Odd.truncated_lost_end if lost else Odd(0)), cut


def folder_encoder(model_dir: Path, template: str | None = None) -> ConversationEncoder:
    """For a model's folder. Raises WhetError ``tokenizer.*``, ``template.*``, ``vision.*``."""
    files = TokenizerFiles.read(model_dir)
    tokenizer = files.load()
    images = read_image_tokens(model_dir, tokenizer.id_to_token)
    source = template_source(template, files.chat_template)
    return encoder_of(tokenizer, source, images, files.bos_token, files.eos_token, files.add_bos_token)


def image_digest(folder: Path) -> str | None:
    """Hash of the images of prepared rows; None where one of their files is not what it was, or gone."""
    file = folder / SEEN
    if not file.is_file():
        return None
    seen = json.loads(file.read_text(encoding="utf-8"))
    for path, known in seen["files"].items():
        try:
            stat = Path(path).stat()
        except OSError:
            return None
        if [stat.st_size, stat.st_mtime_ns] != known:
            return None
    return digest_of(json.dumps(seen["hash"]).encode())
