"""The rules are narrow: each covers the texts it names, for the tokenizers it names, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.kind_tokenizers import sentencepiece_bpe, unigram, wordpiece
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from whet.engine.export.gguf.known_differences import RULES, KnownDifferences, explain
from whet.engine.export.gguf.pretokenizer import LLAMA_3, TEKKEN
from whet.engine.export.probe_corpus import probe_texts

DOCUMENT = Path(__file__).parents[3] / "docs" / "gguf.md"
PLAIN = [
    "Hello, world!",
    "Grüße aus Köln",
    "3.14 and 2,718",
    "def f(x):\n    return x",
    "😀 日本語",
    "مرحبا",
]


def byte_level(regex: str = LLAMA_3) -> Tokenizer:
    alphabet = {text: id for id, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def composing() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def flagged(**flags: bool) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<x>", normalized=False, **flags)])
    return tokenizer


def named() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"<": 0, "/s>": 1, "</s>": 2, "a": 3}, [("<", "/s>")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer


def unigram_without_split() -> Tokenizer:
    tokenizer = unigram()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return tokenizer


def lower_cased() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens(["<X>"])
    return tokenizer


CASES = {
    "decomposed": (composing, ["cafe\u0301"], ["café"]),
    "accents": (wordpiece, ["한국어", "हिन्दी में"], ["café", "日本語"]),
    "controls": (wordpiece, ["a\x85b", "a\x0bb"], ["a\tb", "a\x07b"]),
    "long word": (wordpiece, ["a" * 101], ["a" * 100, "a b " * 60]),
    "word mark": (wordpiece, ["a▁b"], ["a_b"]),
    "punctuation": (wordpiece, ["a⹌b"], ["a⸀b", "a!b"]),
    "capitals": (lambda: byte_level(TEKKEN), ["École", "हि"], ["école", "ABC"]),
    "last space": (unigram_without_split, ["a ", "a\n"], ["a b", " a"]),
    "first space": (lambda: sentencepiece_bpe("always"), [" a", "<s> a"], ["a", "a<s>b", "a <s>"]),
    "named special": (named, ["a</s>"], ["a", "<s"]),
    "swallowed space": (lambda: flagged(rstrip=True), ["<x> a", "<x>\n"], ["<x>a", " <x>"]),
    "within a word": (lambda: flagged(single_word=True), ["a<x>", "<x>1"], ["a <x> b", "(<x>)"]),
    "normalised token": (lower_cased, ["a<X>", "a<x>"], ["a<y>", "X"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_covers_what_it_names(name: str) -> None:
    make, covered, others = CASES[name]
    known = KnownDifferences(make())
    assert [known.cause(text) for text in covered] == [name] * len(covered)
    assert [known.cause(text) for text in others] == [None] * len(others)
    assert {known.cause(text) for text in PLAIN} <= ({None, "capitals"} if name == "capitals" else {None})


def test_a_tokenizer_that_does_nothing_special_is_never_excused() -> None:
    known = KnownDifferences(byte_level())
    for _, covered, others in CASES.values():
        assert [known.cause(text) for text in (*covered, *others)] == [None] * (len(covered) + len(others))


def test_first_space_by_what_the_file_says() -> None:
    tokenizer = sentencepiece_bpe("first")
    added, never = KnownDifferences(tokenizer, True), KnownDifferences(tokenizer, False)
    assert [added.cause(text) for text in ("a", "a<s>", "<s>a", " a")] == [None, None, *["first space"] * 2]
    assert [never.cause(text) for text in ("<s>a", "<s> a<s>b", "a")] == [None, None, "first space"]


def test_every_rule_is_tried_documented_and_explained() -> None:
    rows = [
        line.split("|")[1].strip()
        for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
        if "|" in line
    ]
    assert f"{len(probe_texts())}\ntexts" in DOCUMENT.read_text(encoding="utf-8")
    for rule in RULES:
        assert rule.name in CASES and rule.name in rows
        assert explain(rule.name) == rule.reason
