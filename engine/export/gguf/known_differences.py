"""Where llama.cpp is known to tokenise otherwise than a tokenizer.json: named, narrow, counted. Light.

A text may differ only when a rule here names the cause; everything else is a fault of the file. Each rule
asks what the tokenizer does and what the text holds: a tokenizer that does no such thing is not excused.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .tokenizer_facts import Facts, neighbours

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HANGUL = re.compile("[\uac00-\ud7a3]")
SEPARATING_CONTROLS = re.compile("[\x0b\x0c\x1c-\x1f\x85]")


@dataclass(frozen=True)
class Rule:
    """One cause: ``reason`` for the reader, ``covers`` to tell whether a text shows it."""

    name: str
    reason: str
    covers: Callable[[Facts, str], bool]


def _decomposed(facts: Facts, text: str) -> bool:
    if "Precompiled" in facts.normalizers:
        # The rules join characters: by the longest match there, character by character with its marks here.
        apart = "".join(unicodedata.normalize("NFKC", c) for c in text)
        return unicodedata.normalize("NFKC", text) != apart
    return any(
        form in facts.normalizers and unicodedata.normalize(form, text) != text for form in ("NFC", "NFKC")
    )


def _accents(facts: Facts, text: str) -> bool:
    if not facts.strips_accents:
        return False
    marks = {c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c)[0] == "M"}
    return HANGUL.search(text) is not None or any(facts.normalize(mark) for mark in marks)


def _controls(facts: Facts, text: str) -> bool:
    return facts.kind in ("WordPiece", "Unigram") and SEPARATING_CONTROLS.search(text) is not None


def _long_word(facts: Facts, text: str) -> bool:
    longest = facts.longest_word
    return longest is not None and any(len(word) > longest for word in text.split())


def _word_mark(facts: Facts, text: str) -> bool:
    return facts.kind == "WordPiece" and "▁" in text


def _punctuation(facts: Facts, text: str) -> bool:
    return facts.kind == "WordPiece" and any(
        unicodedata.category(c).startswith("P") and not facts.is_split_off(c) for c in set(text)
    )


def _capitals(facts: Facts, text: str) -> bool:
    categories = (unicodedata.category(c) for c in text if not c.isascii())
    return facts.by_letter_case and any(one in ("Lu", "Lt") or one[0] == "M" for one in categories)


def _last_space(facts: Facts, text: str) -> bool:
    if facts.kind != "Unigram" or not facts.keeps_last_space:
        return False
    return any(facts.normalize(part)[-1:] in (" ", "▁") for part in facts.stretches(text))


def _first_space(facts: Facts, text: str) -> bool:
    if facts.spaces not in ("first", "always"):
        return False
    first, *others = facts.stretches(text)
    if facts.spaces == "first" and not facts.space_added:
        return bool(first)
    if facts.spaces == "first":
        return first[:1] in (" ", "▁") or any(others)
    return any(part[:1] in (" ", "▁") for part in (first, *others))


def _named_special(facts: Facts, text: str) -> bool:
    return any(name in text for name in facts.taken_for_special)


def _swallowed_space(facts: Facts, text: str) -> bool:
    before, after = neighbours(text, facts.swallowing_before), neighbours(text, facts.swallowing_after)
    beside = [c for c, _ in before] + [c for _, c in after]
    # Where llama.cpp is told of the flags, it still knows no spaces but ASCII's.
    return any(c.isspace() and not (facts.flags_carried and c.isascii()) for c in beside)


def _within_word(facts: Facts, text: str) -> bool:
    return any(c.isalnum() or c == "_" for place in neighbours(text, facts.whole_words) for c in place)


def _normalized_token(facts: Facts, text: str) -> bool:
    if not facts.normalized_tokens:
        return False
    normalized = facts.normalize(text)
    return any(before in text or after in normalized for before, after in facts.normalized_tokens)


RULES = (
    Rule("decomposed", "text not in Unicode's composed form, which llama.cpp does not make", _decomposed),
    Rule(
        "accents",
        "Korean syllables, spacing and newer marks (Indic vowels, Adlam), stripped as accents there",
        _accents,
    ),
    Rule("controls", "control characters that only one side takes for spaces", _controls),
    Rule("long word", "words too long for the tokenizer, cut into pieces there all the same", _long_word),
    Rule("word mark", "the character ▁ itself, with which words begin there", _word_mark),
    Rule("punctuation", "newer punctuation marks, which the tokenizer takes for letters", _punctuation),
    Rule("capitals", "marks and capitals beyond a to z, which it does not tell apart to split", _capitals),
    Rule("last space", "space at the end, for which only the tokenizer has a token", _last_space),
    Rule("first space", "the space put in front of a text, which it adds always or never", _first_space),
    Rule("named special", "ordinary tokens that it takes for special ones by their name", _named_special),
    Rule("swallowed space", "space beside an added token that belongs to the token", _swallowed_space),
    Rule(
        "within a word", "added tokens that count as whole words only, found within words there", _within_word
    ),
    Rule("normalised token", "added tokens that are looked for in the normalised text", _normalized_token),
)


class KnownDifferences:
    """The rules for one tokenizer.

    Args:
        tokenizer: as loaded.
        space_added: what the file says of the space in front of a text (``Vocabulary.add_space_prefix``).
    """

    def __init__(self, tokenizer: Tokenizer, space_added: bool = True) -> None:
        self._facts = Facts.of(tokenizer, space_added)

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
