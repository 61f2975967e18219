"""Which layouts of rows each method learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .pairs import embedding_layout
from .rows import RawRow
from .tables import Layout

if TYPE_CHECKING:
    from ..recipe import MethodSection

READS = {
    "embedding": "pairs (anchor, positive), triplets (anchor, positive, negative), scored pairs (anchor, "
    "positive, score) and labelled texts (text, label)",
}


def find_layout(method: MethodSection, rows: Sequence[RawRow], columns: Mapping[str, str]) -> Layout | None:
    """The layout of the first rows of a source; None where the method has none like it."""
    return {"embedding": embedding_layout}[method.kind](rows, columns)


def wanted_layouts(method: MethodSection) -> str:
    """In words."""
    return READS[method.kind]
