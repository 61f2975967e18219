"""The probe corpus: short texts on which two tokenizers must agree to be called the same. Light."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("probe_corpus.json")
MOST_SPECIALS = 24
"""Special tokens put into texts, the first and the last ones (a user's own): models reserve hundreds that all
behave alike."""


def probe_texts() -> list[str]:
    """All texts: scripts of the world, emoji, code, numbers, runs of whitespace, combining marks and more."""
    return [text for group in probe_groups().values() for text in group]


@cache
def probe_groups() -> dict[str, list[str]]:
    """The texts by what they probe."""
    groups: dict[str, list[str]] = json.loads(FILE.read_text(encoding="utf-8"))
    return groups


def with_special_tokens(texts: list[str], specials: list[str]) -> list[str]:
    """``texts``, and each of some special tokens alone, within words, between spaces and lines."""
    half = MOST_SPECIALS // 2
    chosen = dict.fromkeys([*specials[:half], *specials[-half:]])
    forms = ("{}", "before{}after", "before {} after", "one\n{}\ntwo", "{}{}", " {} ")
    return texts + [form.replace("{}", token) for token in chosen for form in forms]
