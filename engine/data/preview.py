"""Rows of a data set as a model's tokens: what `whet template` shows. Light."""

from __future__ import annotations

from itertools import islice

from pydantic import BaseModel, ConfigDict

from ..errors import WhetError
from ..models.locate import resolve_model
from ..recipe import Recipe
from .formats import FormatName, sniff, to_example
from .rows import RawRow, RowError
from .sources import iter_rows
from .tokenization import RowTokenizer, TokenizerFiles

SNIFFED_ROWS = 100


class TokenPiece(BaseModel):
    """One token of a row."""

    model_config = ConfigDict(frozen=True)

    id: int
    text: str
    supervised: bool
    special: bool


class TemplatePreview(BaseModel):
    """One row after rendering, tokenising and masking, exactly as it would be trained on."""

    model_config = ConfigDict(frozen=True)

    file: str
    line: int
    tokens: list[TokenPiece]
    truncated: bool
    problem: str = ""
    """Why the row cannot be used, if so."""


def preview_template(recipe: Recipe, rows: int) -> list[TemplatePreview]:
    """The first ``rows`` readable rows of the recipe's training data as tokens.

    Raises:
        WhetError: ``data.*``, ``tokenizer.*`` or ``template.*``.
    """
    source = recipe.data.train if isinstance(recipe.data.train, str) else recipe.data.train[0]
    head = [row for row in islice(iter_rows(source, recipe.data), SNIFFED_ROWS) if isinstance(row, RawRow)]
    if not head:
        raise WhetError(
            "data.empty", f"{source} has no readable row at its beginning.", f"whet data {source}"
        )
    layout = recipe.data.format if recipe.data.format != "auto" else sniff(head, recipe.data.columns).format
    if layout is None:
        raise WhetError("data.format", f"The rows of {source} have no known layout.", f"whet data {source}")
    files = TokenizerFiles.read(resolve_model(recipe.model.name, recipe.model.revision))
    tokenizer = RowTokenizer.from_files(files, recipe.data.template)
    return [_preview(row, layout, recipe, tokenizer) for row in head[:rows]]


def _preview(row: RawRow, layout: FormatName, recipe: Recipe, tokenizer: RowTokenizer) -> TemplatePreview:
    try:
        example = to_example(row, layout, recipe.data)
        prepared = tokenizer.prepare(example, recipe.method.supervise)
    except RowError as error:
        return TemplatePreview(file=row.file, line=row.line, tokens=[], truncated=False, problem=error.reason)
    encoded = tokenizer.encode([prepared], recipe.model.max_length)[0]
    added = tokenizer.tokenizer.get_added_tokens_decoder()
    tokens = [
        TokenPiece(
            id=token,
            text=tokenizer.tokenizer.decode([token], skip_special_tokens=False),
            supervised=label != -100,
            special=token in added and added[token].special,
        )
        for token, label in zip(encoded.input_ids, encoded.labels, strict=True)
    ]
    return TemplatePreview(file=row.file, line=row.line, tokens=tokens, truncated=encoded.truncated)
