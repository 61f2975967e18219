"""What rows could be trained for: every method that reads them, and the one they were most probably made for.

Looks at the first rows only. Light.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from pydantic import BaseModel, ConfigDict, Field

from ..recipe import METHODS, Recipe
from .formats import renamed, sniff
from .image_rows import has_images, reads
from .layouts import FIND
from .mapping import find_mapping
from .rows import RawRow, RowError
from .sources import iter_rows
from .tables import Layout

LOOKED_AT = 200
SHARE = 0.5
"""Of the rows must be readable in a layout."""
PLAINLY = ("tagged", "preference", "ratings", "multi_labelled", "speech", "codes")
"""Layouts that rows have for one purpose only, whatever else could be made of them."""
RANKED = ("document", "passage")
"""Names of a column of search results, which rerankers are trained on."""
ORDER = ("preference", "classification", "token_classification", "embedding", "reranker", "reward")


class Use(BaseModel):
    """A method that reads these rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(description="As method.kind takes it.")
    layout: str
    columns: dict[str, str] = Field(description="What is trained on -> the field of a row that holds it.")


def uses_of_recipe(recipe: Recipe) -> list[Use]:
    """Of a recipe's first source of training rows. Raises WhetError ``data.*`` where it cannot be read."""
    train = recipe.data.train
    rows = iter_rows(train if isinstance(train, str) else train[0], recipe.data)
    head = [row for row in islice(rows, LOOKED_AT) if isinstance(row, RawRow)]
    return uses_of(head, recipe.data.columns)


def likeliest(uses: Sequence[Use]) -> str:
    """The first method among these whose settings can all be left at their defaults; else supervised
    fine-tuning, which says what it does not know."""
    for use in uses:
        needed = (field.is_required() for field in METHODS[use.method].model_fields.values())
        if not any(needed):
            return use.method
    return "sft"


def uses_of(rows: Sequence[RawRow], columns: Mapping[str, str]) -> list[Use]:
    """Methods that read these rows, the likeliest first; none where whet knows no layout of theirs.

    Args:
        rows: the first ones of a source.
        columns: the recipe's renaming, a stored column's name to this data's.
    """
    if _seen(rows, columns):
        return [Use(method="vision", layout="images", columns=dict(columns))]
    layouts = {kind: find(rows, columns) for kind, find in FIND.items()} if rows else {}
    readable = {kind: one for kind, one in layouts.items() if one is not None and _reads(one, rows, columns)}
    found = [
        Use(method=kind, layout=layout.name, columns=_fields(layout))
        for kind, layout in sorted(readable.items(), key=lambda one: _rank(*one))
    ]
    chat = _as_chat(rows, columns)
    if chat is None:
        return found
    names = {layout.name for layout in readable.values()}
    lone = chat.layout == "text" and chat.columns.get("text", "text") != "text"
    classes = chat.layout == "text" and _is_class(readable, rows)
    other = bool(names & set(PLAINLY)) or lone or classes
    return [*found, chat] if other else [chat, *found]


def _seen(rows: Sequence[RawRow], columns: Mapping[str, str]) -> bool:
    """Whether most rows are conversations, or questions with answers, beside images."""
    values = [renamed(row.value, columns) for row in rows]
    return bool(rows) and sum(has_images(one) and reads(one) for one in values) >= SHARE * len(rows)


def _as_chat(rows: Sequence[RawRow], columns: Mapping[str, str]) -> Use | None:
    """Supervised fine-tuning: a layout it knows, or columns whose names say what is asked and answered."""
    known = sniff(rows, columns).format
    if known is not None:
        return Use(method="sft", layout=known, columns=dict(columns))
    mapping = None if columns else find_mapping(rows)
    return None if mapping is None else Use(method="sft", layout=mapping.format, columns=mapping.columns)


def _reads(layout: Layout, rows: Sequence[RawRow], columns: Mapping[str, str]) -> bool:
    """Whether most of the rows hold what the layout's columns should."""
    good = 0
    for row in rows:
        try:
            layout.read(renamed(row.value, columns))
        except RowError:
            continue
        good += 1
    return good >= SHARE * len(rows)


def _fields(layout: Layout) -> dict[str, str]:
    return {name: column.field for name, column in layout.columns.items()}


def _rank(kind: str, layout: Layout) -> int:
    """Smaller is likelier."""
    fields = _fields(layout)
    if kind == "reranker" and "score" in fields and fields.get("positive") in RANKED:
        return -1
    return ORDER.index(kind) if kind in ORDER else len(ORDER)


def _is_class(readable: Mapping[str, Layout], rows: Sequence[RawRow]) -> bool:
    """Labels that come again and again are classes; one of each row's own is none."""
    layout = readable.get("classification")
    if layout is None or layout.classes is None:
        return False
    field = layout.columns[layout.classes].field
    labels = {str(row.value.get(field)) for row in rows}
    return 2 * len(labels) <= len(rows)
