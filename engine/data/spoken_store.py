"""Texts with the codes of their sound on disk, as the tokens that a speaking model writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.facts import read_model_facts
from ..recipe import Recipe, TTSSection
from .batches import hash_of
from .codecs import Codec, codec_arguments
from .formats import FormatGuess, renamed
from .inspection import DataReport
from .masking import IGNORE
from .row_flags import Odd
from .rows import RawRow
from .speech_store import sound_of, sounds_digest
from .split_writer import SplitWriter
from .spoken import codes_of
from .table_store import TableBatch, TableBuilder, TableWriter
from .tables import Layout, text_of
from .voices import Spoken, layout_of, voice_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

    from .batches import TokenBatch


LONGEST = 300.0
"""Seconds of a sound; what it takes more than ``model.max_length`` frames is cut and told."""


class SpokenBuilder(TableBuilder):
    """Rows that the model's family writes as tokens; their cut falls on the end of the speech."""

    rows_at_once = 128

    def __init__(
        self, recipe: Recipe, model_dir: Path, out: Path, progress: Callable[[int], None] | None
    ) -> None:
        super().__init__(recipe, model_dir, out, progress)
        assert isinstance(recipe.method, TTSSection)
        self.method, self.model_dir = recipe.method, model_dir
        rows = read_model_facts(model_dir).embedding_rows
        self.voice = voice_of(recipe.method, self.tokenizer, model_dir, rows)
        self.codec: Codec | None = None

    @classmethod
    def decided_by(cls, recipe: Recipe, model_dir: Path) -> dict[str, Any]:
        """The layout and its marks, and the sound files as they are now."""
        return {"tts": recipe.method.model_dump(mode="json"), "sounds": sounds_digest(recipe)}

    def guess(self, source: str, rows: list[RawRow]) -> FormatGuess:
        """As the base class; rows of sound need the codec. Raises WhetError ``tts.codec``."""
        found = super().guess(source, rows)
        if found.other == "speech" and self.codec is None:
            layout = layout_of(self.method, self.tokenizer, self.model_dir)
            self.codec = Codec(*codec_arguments(self.method, layout, self.model_dir))
        return found

    def run(self) -> DataReport:
        """As the base class."""
        try:
            return super().run()
        finally:
            if self.codec is not None:
                self.codec.close()

    def value_of(self, row: RawRow, layout: Layout) -> dict[str, Any]:
        """The row's tokens."""
        value = renamed(row.value, self.section.columns)
        text = text_of(value, layout.columns["text"].field).strip()
        if self.codec is None or "codes" in layout.columns:
            codes = codes_of(value, layout.columns["codes"].field)
        else:
            sound = sound_of(row, value, layout.columns["audio"].field, self.codec.rate, LONGEST)
            codes = self.codec.encode(sound)
        return {"spoken": self.voice.write(text, codes, value)}

    def key_of(self, value: dict[str, Any]) -> int:
        """All of the row's tokens."""
        spoken: Spoken = value["spoken"]
        return hash_of(f"{spoken.input_ids}\x1f{spoken.frames}")

    def split(self, name: str, drop: Iterable[str] = (), leaked: Iterable[int] = ()) -> SplitWriter:
        """Of token rows."""
        assert self.layout is not None
        return SpokenWriter(self.layout, self.out / name, drop, leaked)

    def _count(self, done: TableBatch, layout: Layout) -> None:
        """Cut each row to the longest that is trained; one that has no speech left is not stored."""
        most = self.recipe.model.max_length
        for number, value in enumerate(done.values):
            spoken: Spoken = value.pop("spoken")
            ids, labels = spoken.input_ids[:most], spoken.labels[:most]
            frames = spoken.frames[: max(0, most - len(ids))]
            length = len(spoken.input_ids) + len(spoken.frames)
            supervised = len(frames) + sum(label != IGNORE for label in labels)
            size = len(ids) + len(frames) if supervised else 0
            flags = Odd(0)
            if length > most:
                flags |= Odd.truncated_rows
                flags |= Odd.truncated_lost_end if supervised else Odd.truncated_lost_all
            value |= {"input_ids": ids, "labels": labels, "frames": [c for frame in frames for c in frame]}
            done.owners.append(number)
            done.lengths.append(length)
            done.sizes.append(size)
            done.supervised.append(supervised)
            done.flags.append(flags if supervised else flags | Odd.unsupervised_rows)
            if size:
                done.ids.extend(ids + [0] * len(frames))


class SpokenWriter(TableWriter):
    """Stores input_ids and labels as for token rows; of models with several codebooks also the frames' codes,
    one frame after another."""

    def schema(self) -> pyarrow.Schema:
        """Lists of int32."""
        import pyarrow as pa

        names = ("input_ids", "labels", "frames")
        return pa.schema([*((name, pa.list_(pa.int32())) for name in names), ("row", pa.int64())])

    def write(self, batch: TokenBatch, keep: np.ndarray, rows: np.ndarray, number: np.ndarray) -> None:
        """As the base class, without rows that the cut left no speech of."""
        import numpy as np

        sizes = np.frombuffer(batch.sizes, dtype=np.uint32)
        super().write(batch, keep & (sizes > 0), rows, number)
