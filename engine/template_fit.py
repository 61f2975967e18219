"""Which chat template fits a model's vocabulary, and whether the one that was named does. Light."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from .data.chat_templates import TEMPLATES, TemplateInfo, find
from .data.formats import sniff
from .data.mapping import Mapping, find_mapping
from .data.rows import RawRow
from .data.sources import iter_rows
from .data.tokenizer_files import TokenizerFiles
from .models.facts import ModelFacts
from .models.families import family_of
from .recipe import Recipe

PLAIN = "plain text"
"""What the table of templates calls a format that belongs to no family."""


def fitting_template(recipe: Recipe, facts: ModelFacts) -> str | None:
    """The template for chat rows when neither recipe nor model has one (finding D09); otherwise None."""
    if recipe.data.template or facts.has_chat_template or not _chat_rows(recipe):
        return None
    return template_for(facts)


def template_for(facts: ModelFacts) -> str:
    """The family's own template where this vocabulary has its markers, then any whose markers it has.

    Where it has none of them: one that needs no special tokens.
    """
    vocabulary = _special_tokens(facts.path)
    own = family_of(facts.model_type).chat_template
    preferred = [name for name in (own, "chatml") if name]
    candidates = preferred + [name for name, info in TEMPLATES.items() if info.markers]
    for name in candidates:
        if TEMPLATES[name].markers and set(TEMPLATES[name].markers) <= vocabulary:
            return name
    return "vicuna"


def missing_markers(recipe: Recipe, facts: ModelFacts) -> tuple[str, ...]:
    """Markers of the named template that this vocabulary does not have as tokens (finding D13)."""
    named = recipe.data.template
    if named is None or "{%" in named:
        return ()
    vocabulary, info = _special_tokens(facts.path), find(named).info
    missing = tuple(marker for marker in info.markers if marker not in vocabulary)
    return missing or _foreign_signs(info, facts, vocabulary)


def _foreign_signs(info: TemplateInfo, facts: ModelFacts, vocabulary: set[str]) -> tuple[str, ...]:
    """`[INST]` is plain text to Llama 2, and means nothing to a model whose own template does without it."""
    own = TokenizerFiles.read(facts.path).chat_template
    if own is None or info.markers or info.family == PLAIN:
        return ()
    signs = (info.instruction_part, info.response_part)
    return tuple(sign for sign in signs if sign not in vocabulary and sign not in own)


def fitting_mapping(recipe: Recipe) -> Mapping | None:
    """Which columns of the first training source are what, where their names say nothing known (D15)."""
    return None if recipe.data.columns else find_mapping(_first_rows(recipe))


def _chat_rows(recipe: Recipe) -> bool:
    """Whether the first training source holds conversations, by the recipe's word or its first rows."""
    if recipe.data.format != "auto":
        return recipe.data.format in ("messages", "sharegpt", "alpaca")
    guess = sniff(_first_rows(recipe), recipe.data.columns)
    return guess.format in ("messages", "sharegpt", "alpaca")


def _first_rows(recipe: Recipe) -> list[RawRow]:
    train = recipe.data.train
    first = iter_rows(train if isinstance(train, str) else train[0], recipe.data)
    return [row for row in islice(first, 100) if isinstance(row, RawRow)]


def _special_tokens(path: Path) -> set[str]:
    """Texts of the tokens added to the vocabulary; a tokenizer's markers are among them."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return set()
    return {entry["content"] for entry in json.loads(file.read_text(encoding="utf-8"))["added_tokens"]}
