"""Recipe section of classifiers of texts. Light: no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..section import RowMethod


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
