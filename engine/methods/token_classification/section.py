"""Recipe section of token classifiers. Light: no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..section import RowMethod


class TokenClassificationSection(RowMethod):
    """Each word of a text gets a tag; a word's first token carries it."""

    kind: Literal["token_classification"] = "token_classification"
    label_names: list[str] = Field(
        default_factory=list,
        description="Names of numbered tags, e.g. [O, B-PER, I-PER]: the first is tag 0's. By default the "
        "tags themselves.",
    )
