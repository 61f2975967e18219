"""Rows of other methods than supervised fine-tuning, as what goes into the model of each. Light."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..errors import WhetError
from ..methods.reranker.asking import wrapping
from ..methods.section import TEMPLATED
from ..methods.token_classification.alignment import IGNORED, aligned, joined
from ..models.locate import resolve_model
from ..recipe import Recipe
from .answers import examples_of
from .formats import Example, renamed
from .layouts import find_layout
from .preview import SNIFFED_ROWS, TemplatePreview, TokenPiece, encoded_preview, first_source
from .prompts import prompt_of
from .rows import BadRow, RawRow, RowError
from .sources import iter_rows
from .tables import Layout
from .tokenization import RowTokenizer, TokenizerFiles

if TYPE_CHECKING:
    from tokenizers import Encoding

NOTES = {
    "embedding": "No chat template writes these rows. Each text goes into the model by itself, after the "
    "prompt of its side where there is one (method.query_prompt, method.document_prompt).",
    "classification": "No chat template writes these rows. A text, or both that are read together, goes into "
    "the model as it is; the class is what it is held against.",
    "token_classification": "No chat template writes these rows. The words, joined by spaces, go into the "
    "model; the first token of each carries its tag and is marked.",
    "reranker": "No chat template writes these rows. A query goes into the model beside each document, "
    "parted by what the tokenizer sets between two texts.",
    "preference": "The template writes prompt and answer as for supervised fine-tuning; of each answer the "
    "marked tokens count.",
    "reward": "The template writes prompt and answer as for supervised fine-tuning; the score is read at the "
    "answer's last token.",
    "grpo": "The template writes the prompt; the model answers, and the rewards read the other columns.",
}
"""What of a template applies to the rows of a method."""


def preview_rows(recipe: Recipe, rows: int) -> list[TemplatePreview]:
    """The first ``rows`` rows of a recipe of another method, one preview for each text, pair or answer.

    Empty for methods whose rows are not text alone. Raises WhetError ``data.*``, ``tokenizer.*``,
    ``template.*``.
    """
    if recipe.method.kind not in NOTES:
        return []
    head = list(islice(iter_rows(first_source(recipe), recipe.data), max(SNIFFED_ROWS, rows)))
    readable = [row for row in head if isinstance(row, RawRow)]
    layout = find_layout(recipe.method, readable, recipe.data.columns) if readable else None
    if layout is None:
        source = first_source(recipe)
        look = shlex.join(["whet", "data", source])
        raise WhetError("data.format", f"The rows of {source} have no known layout.", look)
    files = TokenizerFiles.read(resolve_model(recipe.model.name, recipe.model.revision))
    tokenizer = RowTokenizer.from_files(files, recipe.data.template)
    return [one for row in head[:rows] for one in _previews(row, layout, recipe, tokenizer)]


def _previews(
    row: RawRow | BadRow, layout: Layout, recipe: Recipe, tokenizer: RowTokenizer
) -> list[TemplatePreview]:
    if isinstance(row, BadRow):
        return [_problem(row, row.reason)]
    try:
        value = renamed(row.value, recipe.data.columns)
        if recipe.method.kind in TEMPLATED:
            examples = _examples(value, layout, recipe)
            return [encoded_preview(row, example, recipe, tokenizer) for example in examples]
        return _texts(row, layout.read(value), layout, recipe, tokenizer)
    except RowError as error:
        return [_problem(row, error.reason)]


def _problem(row: RawRow | BadRow, reason: str) -> TemplatePreview:
    return TemplatePreview(file=row.file, line=row.line, tokens=[], truncated=False, problem=reason)


def _examples(value: dict[str, Any], layout: Layout, recipe: Recipe) -> list[Example]:
    """Each answer after its prompt; of reinforcement learning the prompt alone."""
    system = recipe.data.system
    if layout.name in ("preference", "ratings"):
        return examples_of(value, layout.name, system)
    prompt = prompt_of(value, system)
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [Example(messages=[*turns])]


def _texts(
    row: RawRow, value: dict[str, Any], layout: Layout, recipe: Recipe, tokenizer: RowTokenizer
) -> list[TemplatePreview]:
    """What the tokenizer makes of each text or pair of texts, by its own rules."""
    encoder, most = tokenizer.tokenizer, recipe.model.max_length
    write = wrapping(recipe, resolve_model(recipe.model.name, recipe.model.revision))
    found = []
    for text in layout.inputs(value):
        if write is not None and isinstance(text, tuple):
            text = write(*text)
        encoding = encoder.encode(*text) if isinstance(text, tuple) else encoder.encode(text)
        marked = _first_tokens(encoding, value) if layout.name == "tagged" else set()
        tokens = [
            TokenPiece(id=id, text=piece, supervised=at in marked, special=bool(special))
            for at, (id, piece, special) in enumerate(
                zip(encoding.ids, _pieces(encoding, text), encoding.special_tokens_mask, strict=True)
            )
        ]
        found.append(
            TemplatePreview(file=row.file, line=row.line, tokens=tokens[:most], truncated=len(tokens) > most)
        )
    return found


def _first_tokens(encoding: Encoding, value: dict[str, Any]) -> set[int]:
    """Places of the tokens that carry a tag."""
    words: Sequence[str] = value["words"]
    tags = aligned(encoding.offsets, joined(words)[1], [0] * len(words))
    return {at for at, tag in enumerate(tags) if tag != IGNORED}


def _pieces(encoding: Encoding, text: str | tuple[str, str]) -> list[str]:
    """The part of its text that each token stands for, with the blank before it; special ones by name."""
    parts = text if isinstance(text, tuple) else (text,)
    found, ends = [], [0] * len(parts)
    for name, (begin, end), part, special in zip(
        encoding.tokens, encoding.offsets, encoding.sequence_ids, encoding.special_tokens_mask, strict=True
    ):
        if special or part is None:
            found.append(name)
            continue
        found.append(parts[part][min(ends[part], begin) : end])
        ends[part] = max(ends[part], end)
    return found
