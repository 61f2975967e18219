"""What was seen while every row was read once: enough for the data checks, without reading again."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from .formats import FormatGuess
from .row_flags import Odd
from .template_facts import TemplateFacts

if TYPE_CHECKING:
    import numpy as np

    from .batches import TokenBatch

KEPT_BAD_ROWS = 50
KEPT_EXAMPLES = 20
TOLD_APART = 10
"""Different answers are counted up to here."""


class RowRef(BaseModel):
    """Where a row stands; ``line`` counts from 1 (row number in files without lines)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    line: int


class BadRowRecord(RowRef):
    """A row that could not be used, and why."""

    reason: str
    preview: str = ""


class Lengths(BaseModel):
    """Tokens a row before truncation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    p50: int = 0
    p95: int = 0
    p99: int = 0
    max: int = 0


class SplitReport(BaseModel):
    """Counts over one split, train or eval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(0, description="Usable rows read.")
    token_rows: int = Field(
        0, description="Rows stored: without unsupervised rows, with long texts split into windows."
    )
    tokens: int = Field(0, description="Tokens stored.")
    supervised_tokens: int = Field(0, description="Stored tokens that carry a label.")
    unsupervised_rows: int = Field(
        0, description="Rows without a supervised token after the cut; not stored."
    )
    answerless: int = Field(0, description="Rows without a supervised token even before the cut; not stored.")
    truncated_rows: int = 0
    truncated_lost_all: int = Field(0, description="Cut rows that lost all of their supervised tokens.")
    truncated_lost_end: int = Field(0, description="Cut rows that lost the end of their supervised tokens.")
    length: Lengths = Field(default_factory=Lengths)
    double_bos: int = Field(0, description="Rows that begin with two BOS tokens.")
    missing_bos: int = Field(0, description="Chat rows without the BOS that the tokenizer itself would add.")
    without_end_token: int = Field(
        0, description="Uncut rows whose supervised tokens do not end with an end token."
    )
    double_end: int = Field(0, description="Rows whose supervised tokens end with two end tokens.")
    special_in_text: dict[str, int] = Field(
        default_factory=dict, description="Special tokens written literally in messages."
    )
    foreign_markers: dict[str, int] = Field(
        default_factory=dict, description="Literal template markers that this tokenizer splits into pieces."
    )
    marked_rows: int = Field(0, description="Rows with any of these.")
    empty_replies: int = Field(0, description="Rows in which the assistant says nothing once.")
    odd_roles: int = Field(0, description="Conversations that do not alternate user and assistant.")
    broken_prefix: int = Field(
        0, description="Conversations whose text does not begin with the prompt of their last answer."
    )
    thinking_dropped: int = Field(
        0, description="Conversations with answers whose thinking the template drops: they are context."
    )
    answer_in_prompt: int = Field(0, description="Rows whose answer stands in their prompt, word for word.")
    answers_in_prompt: int = Field(
        0, description=f"Different answers among these, counted up to {TOLD_APART}."
    )
    duplicates: int = Field(0, description="Rows that repeat an earlier row of the split.")
    dropped: dict[str, int] = Field(default_factory=dict, description="Rows left out by data.drop.")
    languages: dict[str, int] = Field(default_factory=dict, description="Answers by their language.")
    examples: dict[str, list[RowRef]] = Field(
        default_factory=dict, description=f"The first {KEPT_EXAMPLES} rows of each count above."
    )
    max_token_id: int = -1

    def places(self, name: str, most: int = 5) -> list[str]:
        """Where the first rows of a count stand, as ``file:line``."""
        return [f"{row.file}:{row.line}" for row in self.examples.get(name, [])[:most]]


class ImageCounts(BaseModel):
    """Images of the training rows, and where their answers stand behind them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = 0
    rows: int = Field(0, description="Rows with images.")
    tokens: int = Field(0, description="Of the rows' tokens, those that stand for images.")
    most_in_a_row: int = 0
    most_patches_in_a_row: int = Field(0, description="Tokens of the image encoder for one row's images.")
    fewest_before_answers: int = Field(0, description="Tokens before the first supervised one of any row.")
    most_supervised_in_a_row: int = Field(0, description="Supervised tokens.")


class DataReport(BaseModel):
    """The whole report, stored beside the tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    formats: dict[str, FormatGuess] = Field(description="What each source's rows look like; train first.")
    bad_rows: int = 0
    bad: list[BadRowRecord] = Field(default_factory=list, description=f"The first {KEPT_BAD_ROWS}.")
    train: SplitReport
    eval: SplitReport | None = None
    eval_in_train: int = Field(0, description="Eval rows that are also training rows.")
    eval_in_train_examples: list[RowRef] = Field(default_factory=list)
    max_length: int
    supervise: str
    labels: dict[str, int] = Field(
        default_factory=dict, description="Classes, and how often the training rows name each."
    )
    images: ImageCounts | None = Field(None, description="Of rows that hold images.")
    texts_per_row: int = Field(1, description="Texts of a row that go through the model, each by itself.")
    template: str | None = Field(None, description="Template in force: as the recipe names it, or `model`.")
    bos_token: str | None = None
    end_of_turn: str | None = Field(None, description="What ends a supervised turn, as text.")
    end_id: int | None = Field(None, description="Its id, where it is one token.")
    eos_id: int | None = Field(None, description="Id of the tokenizer's EOS.")
    template_facts: TemplateFacts | None = Field(None, description="What the template in force writes.")
    seconds: float = 0.0

    @property
    def format(self) -> FormatGuess:
        """The first training source's format."""
        return next(iter(self.formats.values()))


@dataclass
class SplitCounter:
    """Accumulates one :class:`SplitReport`; 24 bytes a row, so a million rows cost 24 MB."""

    counts: Counter[str] = field(default_factory=Counter)
    special_in_text: Counter[str] = field(default_factory=Counter)
    foreign_markers: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    copied: set[int] = field(default_factory=set)
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[int]] = field(default_factory=dict)
    """Rows by their number in the split."""
    max_token_id: int = -1
    lengths: array[int] = field(default_factory=lambda: array("I"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    lines: array[int] = field(default_factory=lambda: array("Q"))
    files: list[tuple[int, str]] = field(default_factory=list)

    def take(self, batch: TokenBatch, keep: np.ndarray, rows: np.ndarray) -> None:
        """Count the examples to ``keep`` of a batch, and their token ``rows`` (both bool)."""
        import numpy as np

        number = len(self.lines) + np.cumsum(keep) - 1
        self._files(batch, keep, number)
        self.lines.frombytes(np.frombuffer(batch.lines, dtype=np.uint64)[keep].tobytes())
        self.hashes.frombytes(np.frombuffer(batch.hashes, dtype=np.uint64)[keep].tobytes())
        self.lengths.frombytes(np.frombuffer(batch.lengths, dtype=np.uint32)[rows].tobytes())
        self.counts["rows"] += int(keep.sum())
        flags = np.frombuffer(batch.flags, dtype=np.uint32)
        for odd in Odd:
            found = np.flatnonzero(((flags & int(odd)) > 0) & keep)
            self.counts[str(odd.name)] += len(found)
            kept = self.examples.setdefault(str(odd.name), [])
            kept += [int(number[place]) for place in found[: KEPT_EXAMPLES - len(kept)]]
        for place, marker, special in batch.markers:
            if keep[place]:
                (self.special_in_text if special else self.foreign_markers)[marker] += 1
        for place, answer in batch.copied:
            if keep[place] and len(self.copied) < TOLD_APART:
                self.copied.add(answer)
        self.languages.update(name for name, used in zip(batch.languages, keep, strict=True) if used)
        self._tokens(batch, rows)

    def _files(self, batch: TokenBatch, keep: np.ndarray, number: np.ndarray) -> None:
        edges = [*(first for first, _ in batch.files), len(keep)]
        for (first, name), after in zip(batch.files, edges[1:], strict=True):
            kept = keep[first:after]
            if kept.any() and (not self.files or self.files[-1][1] != name):
                self.files.append((int(number[first + kept.argmax()]), name))

    def _tokens(self, batch: TokenBatch, rows: np.ndarray) -> None:
        import numpy as np

        sizes = np.frombuffer(batch.sizes, dtype=np.uint32)
        stored = rows & (sizes > 0)
        self.counts["token_rows"] += int(stored.sum())
        self.counts["tokens"] += int(sizes[stored].sum())
        self.counts["supervised_tokens"] += int(
            np.frombuffer(batch.supervised, dtype=np.uint32)[stored].sum()
        )
        if stored.any():
            used = np.frombuffer(batch.ids, dtype=np.int32)[np.repeat(stored, sizes)]
            self.max_token_id = max(self.max_token_id, int(used.max()))

    def locate(self, row: int) -> RowRef:
        """File and line of the split's row number ``row``."""
        name = next(name for first, name in reversed(self.files) if first <= row)
        return RowRef(file=name, line=self.lines[row])

    def report(self) -> SplitReport:
        """The finished counts, with exact percentiles and duplicates (numpy on the packed arrays)."""
        repeated = repeated_rows(self.hashes)
        examples = {**self.examples, "duplicates": repeated[:KEPT_EXAMPLES]}
        fields: dict[str, Any] = dict(self.counts)
        return SplitReport(
            **fields,
            length=lengths_of(self.lengths),
            special_in_text=dict(self.special_in_text),
            foreign_markers=dict(self.foreign_markers),
            answers_in_prompt=len(self.copied),
            duplicates=len(repeated),
            dropped=self.dropped,
            languages=dict(self.languages.most_common()),
            examples={name: [self.locate(row) for row in rows] for name, rows in examples.items() if rows},
            max_token_id=self.max_token_id,
        )


def lengths_of(lengths: array[int]) -> Lengths:
    """Percentiles by the nearest-rank rule: each is the length of a row that exists."""
    import numpy as np

    if not lengths:
        return Lengths()
    values = np.sort(np.frombuffer(lengths, dtype=np.uint32))
    rank = {share: int(values[max(0, -(-len(values) * share // 100) - 1)]) for share in (50, 95, 99)}
    return Lengths(p50=rank[50], p95=rank[95], p99=rank[99], max=int(values[-1]))


def repeated_rows(hashes: array[int]) -> list[int]:
    """Row numbers whose content hash was seen before, in order."""
    import numpy as np

    if not hashes:
        return []
    values = np.frombuffer(hashes, dtype=np.uint64)
    order = np.argsort(values, kind="stable")
    again = values[order][1:] == values[order][:-1]
    return sorted(int(row) for row in order[1:][again])


def rows_also_in(hashes: array[int], other: array[int]) -> list[int]:
    """Row numbers of ``hashes`` whose content also stands in ``other``, in order."""
    import numpy as np

    if not hashes or not other:
        return []
    found = np.isin(np.frombuffer(hashes, dtype=np.uint64), np.frombuffer(other, dtype=np.uint64))
    return [int(row) for row in np.flatnonzero(found)]
