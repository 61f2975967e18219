"""Recordings with what is said in them on disk, as samples and label tokens.

Sound is kept as 16-bit samples at the model's own rate, 32 kB a second of Whisper's; a batch's features are
computed while training, since they would take thirty times the disk of a short sound.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WhetError
from ..recipe import Recipe, SpeechSection
from .audio import read_audio
from .batches import hash_of
from .building import sources_of
from .formats import renamed
from .named_files import is_file, named_path
from .row_flags import Odd
from .rows import RawRow, RowError, repr_of
from .sources import Role, iter_rows, source_files
from .speech import LANGUAGES, SOUNDS
from .split_writer import SplitWriter
from .table_store import TableBatch, TableBuilder, TableWriter
from .tables import Layout, text_of
from .transcripts import Transcripts, not_whisper

if TYPE_CHECKING:
    import pyarrow


def hearing(folder: Path) -> tuple[int, float]:
    """Samples a second that a model hears, and seconds of its window, as its own files say.

    Raises WhetError ``speech.model``.
    """
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "whisper":
        raise not_whisper(folder, f"it is of the type {kind!r}")
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            said = json.loads((folder / name).read_text(encoding="utf-8"))
            said = said.get("feature_extractor") or said
            return int(said.get("sampling_rate", 16000)), float(said.get("chunk_length", 30))
    raise WhetError(
        "speech.model",
        f"{folder} has no preprocessor_config.json, which says how sound becomes features.",
        "Download the model whole, from openai/whisper-* or a folder that transformers saved.",
    )


PEEKED = 20
"""Rows that tell whether a source names sound files."""
ENGLISH = "en"
"""What English-only models write."""


class SpeechBuilder(TableBuilder):
    """Sounds are read, mixed, resampled and checked once; texts become label tokens."""

    rows_at_once = 32

    def __init__(
        self, recipe: Recipe, model_dir: Path, out: Path, progress: Callable[[int], None] | None
    ) -> None:
        super().__init__(recipe, model_dir, out, progress)
        assert isinstance(recipe.method, SpeechSection)
        self.language = recipe.method.language
        self.transcripts = Transcripts.of(model_dir, self.tokenizer, recipe.method.task)
        self.rate, self.longest = hearing(model_dir)
        if self.language is not None:
            self.transcripts.prefix(self.language)

    @classmethod
    def decided_by(cls, recipe: Recipe, model_dir: Path) -> dict[str, Any]:
        """The window, the marks of a text, and the sound files as they are now."""
        assert isinstance(recipe.method, SpeechSection)
        return {
            "hearing": hearing(model_dir),
            "language": recipe.method.language,
            "task": recipe.method.task,
            "sounds": sounds_digest(recipe),
        }

    def value_of(self, row: RawRow, layout: Layout) -> dict[str, Any]:
        """Samples, text and labels."""
        value = renamed(row.value, self.section.columns)
        text = text_of(value, layout.columns["text"].field).strip()
        language = self.language or self._language(value)
        sound = sound_of(row, value, layout.columns["audio"].field, self.rate, self.longest)
        labels = self.transcripts.labels(text, language)
        written = (language or "") if self.transcripts.languages else ENGLISH
        return {"audio": sound, "text": text, "language": written, "labels": labels}

    def _language(self, value: Mapping[str, Any]) -> str | None:
        """As the row says."""
        named = next((str(value[name]) for name in LANGUAGES if value.get(name)), None)
        known = self.transcripts.languages
        if named is not None and known and named not in known:
            raise RowError(
                f"the language is {repr_of(named)}, expected one of {', '.join(sorted(known)[:120])}"
            )
        return named

    def key_of(self, value: dict[str, Any]) -> int:
        """Of sound and text."""
        return hash_of(f"{hashlib.blake2b(value['audio']).hexdigest()}\x1f{value['text']}")

    def split(self, name: str, drop: Iterable[str] = (), leaked: Iterable[int] = ()) -> SplitWriter:
        """Of samples, texts and labels."""
        assert self.layout is not None
        return SpeechWriter(self.layout, self.out / name, drop, leaked)

    def _count(self, done: TableBatch, layout: Layout) -> None:
        """Tokens of each row's text, cut to the longest that is trained."""
        most = self.recipe.model.max_length
        for number, value in enumerate(done.values):
            whole = value["labels"]
            value["labels"] = ids = whole[:most]
            done.owners.append(number)
            done.lengths.append(len(whole))
            done.sizes.append(len(ids))
            done.supervised.append(len(ids))
            done.flags.append(Odd.truncated_rows if len(whole) > most else Odd(0))
            done.ids.extend(ids)


class SpeechWriter(TableWriter):
    """Stores audio (16-bit samples of one channel at the model's rate), text, language (empty where none is
    named) and labels."""

    def schema(self) -> pyarrow.Schema:
        """The samples as bytes, labels as a list of int32."""
        import pyarrow as pa

        texts = [(name, pa.string()) for name in ("text", "language")]
        columns = [("audio", pa.binary()), *texts, ("labels", pa.list_(pa.int32()))]
        return pa.schema([*columns, ("row", pa.int64())])


def sound_of(row: RawRow, value: Mapping[str, Any], field: str, rate: int, longest: float) -> bytes:
    """A row's samples; paths begin at the rows' file. Raises as :func:`.audio.read_audio`."""
    if value.get(field) is None:
        raise RowError(f"field {field!r} is missing or null")
    folder = Path(row.file).parent if Path(row.file).is_file() else None
    return read_audio(value[field], folder, rate, longest)


def sounds_digest(recipe: Recipe) -> str:
    """Hash of the names, sizes and times of the sound files that the rows of local sources name.

    The rows' own file does not change when a recording does.
    """
    section, total = recipe.data, hashlib.blake2b(digest_size=16)
    sources: list[tuple[str, Role]] = [(source, "train") for source in sources_of(section)]
    if section.eval is not None:
        sources.append((section.eval, "eval"))
    for source, role in sources:
        files = source_files(source, role, section.revision)
        if files is None or all(_holds_sounds(file, section.columns) for file in files):
            continue  # the hub's commit says it, or the sounds lie in the file itself
        rows = iter_rows(source, section, role)
        head = list(islice(rows, PEEKED))
        if next(_paths(head, section.columns), None) is None:
            continue  # the sounds, or codes of them, lie in the rows' own file
        for path in _paths(chain(head, rows), section.columns):
            stat = path.stat() if is_file(path) else None
            seen = None if stat is None else [stat.st_size, stat.st_mtime_ns]
            total.update(json.dumps([str(path), seen]).encode())
    return total.hexdigest()


def _holds_sounds(file: Path, columns: Mapping[str, str]) -> bool:
    """Whether a Parquet file has the recordings in it, as `datasets` writes them, or no recordings."""
    if file.suffix.lower() != ".parquet":
        return False
    import pyarrow as pa
    import pyarrow.parquet as parquet

    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    names = renamed({field.name: field.type for field in parquet.read_schema(file)}, columns)
    return not any(name in SOUNDS and any(one(kind) for one in texts) for name, kind in names.items())


def _paths(rows: Iterable[Any], columns: Mapping[str, str]) -> Iterator[Path]:
    """Where the recordings of rows lie, as far as they are files of their own."""
    for row in rows:
        if not isinstance(row, RawRow):
            continue
        value = renamed(row.value, columns)
        held = next((value[name] for name in SOUNDS if name in value), None)
        held = held.get("path") if isinstance(held, Mapping) and not held.get("bytes") else held
        if isinstance(held, str):
            with suppress(RowError):  # said of the row when it is read
                yield Path(row.file).parent / named_path(held, "audio file")
