"""Where llama.cpp is known to tokenise otherwise than a tokenizer.json: named, narrow, counted. Light.

A text may differ only when a rule here names the cause; everything else is a fault of the file. Each rule
asks what the tokenizer does and what the text holds: a tokenizer that does no such thing is not excused.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .token_list import parts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

COMPOSING = {"NFC": "NFC", "NFKC": "NFKC", "Precompiled": "NFC"}
"""Normalizer -> the Unicode form below which its result may differ from llama.cpp's, which composes nothing
(BPE) or by the longest match (Unigram), where the tokenizer goes by whole characters with their marks."""
HANGUL = re.compile("[\uac00-\ud7a3]")
SEPARATING_CONTROLS = re.compile("[\x0b\x0c\x1c-\x1f\x85]")


@dataclass(frozen=True)
class Facts:
    """What the rules ask of a tokenizer."""

    kind: str
    """The model's class: BPE, WordPiece or Unigram."""
    normalizers: dict[str, dict[str, Any]]
    """By type."""
    longest_word: int | None
    """Characters of the longest word that WordPiece looks up."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Facts:
        model = tokenizer.model
        state = json.loads(tokenizer.normalizer.__getstate__()) if tokenizer.normalizer is not None else None
        kind = type(model).__name__
        return cls(
            kind=kind,
            normalizers={step["type"]: step for step in parts(state)},
            longest_word=model.max_input_chars_per_word if kind == "WordPiece" else None,
        )

    @property
    def strips_accents(self) -> bool:
        step = self.normalizers.get("BertNormalizer", {})
        strip = step.get("strip_accents")
        return bool(step.get("lowercase") if strip is None else strip)


@dataclass(frozen=True)
class Rule:
    """One cause: ``reason`` for the reader, ``covers`` to tell whether a text shows it."""

    name: str
    reason: str
    covers: Callable[[Facts, str], bool]


def _not_composed(facts: Facts, text: str) -> bool:
    forms = {form for step, form in COMPOSING.items() if step in facts.normalizers}
    return any(unicodedata.normalize(form, text) != text for form in forms)  # type: ignore[arg-type]


def _accents(facts: Facts, text: str) -> bool:
    if not facts.strips_accents:
        return False
    marks = (unicodedata.category(c) for c in unicodedata.normalize("NFD", text))
    return HANGUL.search(text) is not None or any(category in ("Mc", "Me") for category in marks)


def _controls(facts: Facts, text: str) -> bool:
    return facts.kind in ("WordPiece", "Unigram") and SEPARATING_CONTROLS.search(text) is not None


def _long_word(facts: Facts, text: str) -> bool:
    longest = facts.longest_word
    return longest is not None and any(len(word) > longest for word in text.split())


RULES = (
    Rule("decomposed", "text not in Unicode's composed form, which llama.cpp does not make", _not_composed),
    Rule(
        "accents",
        "Korean syllables and spacing marks (Indic vowels): llama.cpp strips them as accents",
        _accents,
    ),
    Rule("controls", "control characters that only one side takes for spaces", _controls),
    Rule(
        "long word",
        "words too long for the tokenizer, which llama.cpp cuts into pieces all the same",
        _long_word,
    ),
)


class KnownDifferences:
    """The rules for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._facts = Facts.of(tokenizer)

    def cause(self, text: str) -> str | None:
        """Name of the rule that says why ids of ``text`` may differ; None when they must be equal."""
        return next((rule.name for rule in RULES if rule.covers(self._facts, text)), None)

    def split(self, texts: Iterable[str]) -> tuple[list[str], Counter[str]]:
        """Of texts that differ: those that no rule explains, and how many each rule does."""
        causes = [(text, self.cause(text)) for text in texts]
        explained = Counter(name for _, name in causes if name is not None)
        return [text for text, name in causes if name is None], explained


def explain(name: str) -> str:
    """The reason behind a rule's name."""
    return next(rule.reason for rule in RULES if rule.name == name)
