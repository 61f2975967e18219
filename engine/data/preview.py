"""The first rows of a data set: as they stand, and as tokens, which `whet template` shows. Light."""

from __future__ import annotations

import json
import shlex
from itertools import islice

from pydantic import BaseModel, ConfigDict

from ..errors import WhetError
from ..models.locate import resolve_model
from ..recipe import Recipe
from .formats import Example, FormatName, learnt_parts, sniff, to_example
from .rows import BadRow, RawRow, RowError
from .sources import iter_rows
from .tokenization import RowTokenizer, TokenizerFiles

SNIFFED_ROWS = 100
LONGEST_CHARACTER = 4  # bytes of UTF-8


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


class RowText(BaseModel):
    """One row as it stands in its file, as JSON."""

    model_config = ConfigDict(frozen=True)

    file: str
    line: int
    text: str
    problem: str = ""
    """Why it cannot be read; ``text`` is then its beginning."""


def first_rows(recipe: Recipe, rows: int) -> list[RowText]:
    """The first ``rows`` rows of the recipe's first training source. Raises WhetError ``data.*``."""
    return [
        RowText(file=row.file, line=row.line, text=row.preview, problem=row.reason)
        if isinstance(row, BadRow)
        else RowText(
            file=row.file, line=row.line, text=json.dumps(row.value, ensure_ascii=False, default=str)
        )
        for row in islice(iter_rows(first_source(recipe), recipe.data), rows)
    ]


def first_source(recipe: Recipe) -> str:
    """Where the first training rows come from."""
    return recipe.data.train if isinstance(recipe.data.train, str) else recipe.data.train[0]


def preview_template(recipe: Recipe, rows: int) -> list[TemplatePreview]:
    """The first ``rows`` rows of the recipe's training data as tokens; unusable ones say their problem.

    Raises:
        WhetError: ``data.*``, ``tokenizer.*`` or ``template.*``.
    """
    source = first_source(recipe)
    look = shlex.join(["whet", "data", source])
    head = list(islice(iter_rows(source, recipe.data), max(SNIFFED_ROWS, rows)))
    readable = [row for row in head if isinstance(row, RawRow)][:SNIFFED_ROWS]
    if not readable:
        raise WhetError(
            "data.empty",
            f"{source} has no readable row at its beginning.",
            look,
        )
    layout = (
        recipe.data.format if recipe.data.format != "auto" else sniff(readable, recipe.data.columns).format
    )
    if layout is None:
        raise WhetError("data.format", f"The rows of {source} have no known layout.", look)
    files = TokenizerFiles.read(resolve_model(recipe.model.name, recipe.model.revision))
    tokenizer = RowTokenizer.from_files(files, recipe.data.template)
    return [one for row in head[:rows] for one in _previews(row, layout, recipe, tokenizer)]


def _previews(
    row: RawRow | BadRow, layout: FormatName, recipe: Recipe, tokenizer: RowTokenizer
) -> list[TemplatePreview]:
    """One; with ``data.reasoning: each`` one for each answer."""
    try:
        if isinstance(row, BadRow):
            raise RowError(row.reason)
        parts = learnt_parts(to_example(row, layout, recipe.data), recipe.data)
        return [encoded_preview(row, part, recipe, tokenizer) for part in parts]
    except RowError as error:
        bad = TemplatePreview(file=row.file, line=row.line, tokens=[], truncated=False, problem=error.reason)
        return [bad]


def encoded_preview(
    row: RawRow, example: Example, recipe: Recipe, tokenizer: RowTokenizer
) -> TemplatePreview:
    """An example of a row, rendered and masked. Raises RowError where the template refuses it."""
    supervise = recipe.method.supervise if recipe.method.kind == "sft" else "responses"
    prepared = tokenizer.prepare(example, supervise)
    encoded = tokenizer.encode([prepared], recipe.model.max_length)[0]
    added = tokenizer.tokenizer.get_added_tokens_decoder()
    texts = _texts(tokenizer, encoded.input_ids)
    tokens = [
        TokenPiece(
            id=token,
            text=text,
            supervised=label != -100,
            special=token in added and added[token].special,
        )
        for token, label, text in zip(encoded.input_ids, encoded.labels, texts, strict=True)
    ]
    return TemplatePreview(file=row.file, line=row.line, tokens=tokens, truncated=encoded.truncated)


def _texts(tokenizer: RowTokenizer, ids: list[int]) -> list[str]:
    """The text of each token; of tokens that share a character the last has it, the others have none."""
    texts: list[str] = []
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        text = tokenizer.tokenizer.decode(pending, skip_special_tokens=False)
        if text.endswith("\ufffd") and len(pending) < LONGEST_CHARACTER:
            texts.append("")
            continue
        texts.append(text)
        pending = []
    return texts
