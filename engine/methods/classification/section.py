"""Recipe section of classifiers of texts. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..section import RowMethod

if TYPE_CHECKING:
    from ..stored_rows import StoredRows


class ClassificationSection(RowMethod):
    """Each text, or pair of texts, gets one class of several, or any number of them."""

    kind: Literal["classification"] = "classification"
    label_names: list[str] = Field(
        default_factory=list,
        description="Names of numbered classes: the first is class 0's. By default the labels themselves.",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: a row of a rare class counts more, so that all classes count alike."
    )

    def refuse_rows(self, rows: StoredRows) -> None:
        """Names that do not fit the rows' classes, and FP8."""
        from .suiting import refuse_fp8, refuse_names

        refuse_fp8(self.kind, rows.base_precision)
        refuse_names(self.label_names, rows.report.labels)
