"""What was seen while every row was read once: enough for the data checks, without reading again."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .formats import FormatGuess

KEPT_BAD_ROWS = 50
KEPT_EXAMPLES = 20


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
    unsupervised_examples: list[RowRef] = Field(default_factory=list)
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
    empty_replies: int = Field(0, description="Assistant messages without text.")
    odd_roles: int = Field(0, description="Conversations that do not alternate user and assistant.")
    odd_role_examples: list[RowRef] = Field(default_factory=list)
    duplicates: int = Field(0, description="Rows that repeat an earlier row of the split.")
    duplicate_examples: list[RowRef] = Field(default_factory=list)
    max_token_id: int = -1


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
    template: str | None = Field(None, description="Template in force: as the recipe names it, or `model`.")
    bos_token: str | None = None
    end_of_turn: str | None = Field(None, description="What ends a supervised turn, as text.")
    seconds: float = 0.0

    @property
    def format(self) -> FormatGuess:
        """The first training source's format."""
        return next(iter(self.formats.values()))


@dataclass
class SplitCounter:
    """Accumulates one :class:`SplitReport`; 20 bytes a row, so a million rows cost 20 MB."""

    counts: dict[str, int] = field(default_factory=dict)
    special_in_text: dict[str, int] = field(default_factory=dict)
    foreign_markers: dict[str, int] = field(default_factory=dict)
    unsupervised_examples: list[RowRef] = field(default_factory=list)
    odd_role_examples: list[RowRef] = field(default_factory=list)
    max_token_id: int = -1
    lengths: array[int] = field(default_factory=lambda: array("I"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    lines: array[int] = field(default_factory=lambda: array("Q"))
    files: list[tuple[int, str]] = field(default_factory=list)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to one of the report's integer fields."""
        self.counts[name] = self.counts.get(name, 0) + amount

    def start_row(self, file: str, line: int, content_hash: int) -> None:
        """Register a usable row; its number is the count of rows before it."""
        if not self.files or self.files[-1][1] != file:
            self.files.append((len(self.lines), file))
        self.lines.append(line)
        self.hashes.append(content_hash)
        self.count("rows")

    def locate(self, row: int) -> RowRef:
        """File and line of the split's row number ``row``."""
        name = next(name for first, name in reversed(self.files) if first <= row)
        return RowRef(file=name, line=self.lines[row])

    def report(self) -> SplitReport:
        """The finished counts, with exact percentiles and duplicates (numpy on the packed arrays)."""
        repeated = repeated_rows(self.hashes)
        fields: dict[str, Any] = dict(self.counts)
        return SplitReport(
            **fields,
            length=lengths_of(self.lengths),
            special_in_text=self.special_in_text,
            foreign_markers=self.foreign_markers,
            unsupervised_examples=self.unsupervised_examples,
            odd_role_examples=self.odd_role_examples,
            duplicates=len(repeated),
            duplicate_examples=[self.locate(row) for row in repeated[:KEPT_EXAMPLES]],
            max_token_id=self.max_token_id,
        )


def remember(examples: list[RowRef], file: str, line: int) -> None:
    """Keep the first few places only."""
    if len(examples) < KEPT_EXAMPLES:
        examples.append(RowRef(file=file, line=line))


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
