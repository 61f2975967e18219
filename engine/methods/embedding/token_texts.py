"""The texts of a data set as token ids, tokenised once: what a batch needs is looked up by row number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from ...models.fast_path import PackedTokens
from ..graphed import Shape, StaticBatch
from ..packed_texts import pack_texts

AT_ONCE = 2048
"""Texts tokenised in a call."""


@dataclass(frozen=True)
class Column:
    """One column's texts: row i is ``ids[starts[i] : starts[i + 1]]``."""

    ids: np.ndarray
    starts: np.ndarray

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of some rows one after another, and how many each has."""
        begins, lengths = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1]) + np.repeat(begins - ends + lengths, lengths)
        return self.ids[places], lengths


@dataclass(frozen=True)
class TextBatch(StaticBatch):
    """The texts of a batch, column by column, as one packed row on the CPU.

    Args:
        packed: all of them, and what fills up behind.
        rows: of the batch.
        columns: texts of a row.
        tokens: of the texts.
    """

    packed: PackedTokens
    rows: int
    columns: int
    tokens: int

    @property
    def texts(self) -> int:
        """Documents that are no filling."""
        return self.rows * self.columns

    @property
    def shape(self) -> Shape:
        packed = self.packed
        return len(packed.input_ids_T), len(packed.offsets), (packed.longest, self.rows, self.columns)

    def tensors(self) -> list[torch.Tensor]:
        return self.packed.tensors()

    def pinned(self) -> TextBatch:
        return replace(self, packed=self.packed.pin())

    def on(self, device: torch.device) -> TextBatch:
        return replace(self, packed=self.packed.to(device))


class NotPlainTextError(Exception):
    """Why a data set's texts are not read as bare token ids; the text is for people."""


class TokenTexts:
    """All texts of a data set.

    Args:
        model: whose tokenisation is taken, with truncation and prompts, by its own ``preprocess``.
        data: columns of texts, and perhaps one of labels.
        label_columns: names that a column of labels may have; the first one found is it.
        prompts: before the texts of all columns, or of each by its name.

    Raises:
        NotPlainTextError: where preprocessing gives more than token ids.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        data: Dataset,
        label_columns: Sequence[str],
        prompts: str | Mapping[str, str],
    ) -> None:
        label = next((name for name in label_columns if name in data.column_names), None)
        self.labels = None if label is None else torch.tensor(data[label][:])
        names = [name for name in data.column_names if name != label]
        self.columns = [
            _tokenised(model, data[name][:], prompts if isinstance(prompts, str) else prompts.get(name))
            for name in names
        ]

    def batch(self, rows: Sequence[int], multiple: int, filler: int) -> TextBatch:
        """Some rows, packed; see :func:`.packed_texts.pack_texts`."""
        numbers = np.asarray(rows)
        parts = [column.take(numbers) for column in self.columns]
        ids_T, lengths_N = (np.concatenate(each) for each in zip(*parts, strict=True))
        packed = pack_texts(ids_T, lengths_N, multiple, filler)
        return TextBatch(packed, len(numbers), len(self.columns), len(ids_T))


class TextNumbers:
    """A data set's texts as numbers, the same for the same text: for a sampler that looks for duplicates.

    It looks at every row it draws; read from an Arrow file, that took longer than a step of a small encoder.

    Args:
        data: the rows.
        label_columns: columns left out.
    """

    def __init__(self, data: Dataset, label_columns: Sequence[str]) -> None:
        self.column_names = [name for name in data.column_names if name not in label_columns]
        known: dict[str, int] = {}
        columns = [
            [known.setdefault(text, len(known)) for text in data[name][:]] for name in self.column_names
        ]
        self.rows = np.array(columns, dtype=np.int64).T.tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, int]:
        return dict(zip(self.column_names, self.rows[row], strict=True))

    def remove_columns(self, names: Sequence[str]) -> TextNumbers:
        """Itself: labels are not among its columns."""
        return self


@dataclass(frozen=True)
class TextCollator:
    """Row numbers -> ``texts`` (:class:`TextBatch`) and ``label``."""

    texts: TokenTexts
    multiple: int
    filler: int

    def __call__(self, rows: Sequence[int]) -> dict[str, Any]:
        batch: dict[str, Any] = {"texts": self.texts.batch(rows, self.multiple, self.filler)}
        if self.texts.labels is not None:
            batch["label"] = self.texts.labels[list(rows)]
        return batch


def _tokenised(model: SentenceTransformer, texts: Sequence[Any], prompt: str | None) -> Column:
    ids: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    for start in range(0, len(texts), AT_ONCE):
        some = list(texts[start : start + AT_ONCE])
        if not all(isinstance(text, str) for text in some):
            raise NotPlainTextError("a column holds something else than texts")
        found = model.preprocess(some, prompt=prompt, task=None)
        segments = found.get("token_type_ids")
        if "input_ids" not in found or (segments is not None and bool(segments.any())):
            raise NotPlainTextError("texts are preprocessed to more than token ids")
        mask = found["attention_mask"].bool()
        ids.append(found["input_ids"][mask].numpy().astype(np.int32))
        lengths.append(mask.sum(1).numpy())
    counts = np.concatenate([np.zeros(1, dtype=np.int64), *lengths])
    if len(texts) and int(counts[1:].min()) == 0:
        raise NotPlainTextError("a text has no tokens at all")
    return Column(np.concatenate(ids) if ids else np.zeros(0, np.int32), np.cumsum(counts))
