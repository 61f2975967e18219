"""Recipe section of token classifiers. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..section import RowMethod

if TYPE_CHECKING:
    from ..stored_rows import StoredRows


class TokenClassificationSection(RowMethod):
    """Each word of a text gets a tag; a word's first token carries it."""

    kind: Literal["token_classification"] = "token_classification"
    label_names: list[str] = Field(
        default_factory=list,
        description="Names of numbered tags, e.g. [O, B-PER, I-PER]: the first is tag 0's. By default the "
        "tags themselves.",
    )

    def refuse_rows(self, rows: StoredRows) -> None:
        """Names that do not fit the rows' tags, and FP8."""
        from ..classification.suiting import refuse_fp8, refuse_names

        refuse_fp8(self.kind, rows.base_precision)
        refuse_names(self.label_names, rows.report.labels)
