"""The vocabulary proof on made-up measurements: what passes, what warns, what fails."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from typing import Any

import pytest

from whet.engine.export.probe_corpus import TOLERATED, probe_texts
from whet.engine.export.smoke_judge import vocabulary
from whet.engine.export.verdict import Proof


def proof_of(texts: list[str], differing: set[str], composed: Collection[str] = ()) -> Proof:
    asked: list[dict[str, Any]] = [
        {"text": text, "ids": [1, 2], "special": [1, 2], "composed": text in composed} for text in texts
    ]
    answered = [{"ids": [3] if text in differing else [1, 2], "special": []} for text in texts]
    measured = {"vocabulary": answered, "load": {"n_vocab": 8}}
    return vocabulary({"texts": asked, "vocabulary_size": 8}, measured)


@pytest.fixture
def decomposed() -> set[str]:
    found = {text for text in probe_texts() if unicodedata.normalize("NFC", text) != text}
    assert len(found) >= 5
    return found


def test_equal_ids_pass() -> None:
    proof = proof_of(probe_texts(), set())
    assert proof.status == "pass" and "Left out" not in proof.summary


def test_a_composing_tokenizer_passes_and_says_what_was_left_out(decomposed: set[str]) -> None:
    proof = proof_of(probe_texts(), decomposed, composed=decomposed)
    assert proof.status == "pass"
    assert f"Left out: {len(decomposed)}" in proof.summary and "NFC" in proof.summary


def test_the_same_differences_without_composing_fail(decomposed: set[str]) -> None:
    assert proof_of(probe_texts(), decomposed).status == "fail"


def test_own_rows_that_are_not_composed_warn() -> None:
    own = "un cafe\u0301 de mes donne\u0301es"
    proof = proof_of([*probe_texts(), own], {own}, composed={own})
    assert proof.status == "warn" and "your own" in proof.summary and "NFC" in proof.fix


def test_one_odd_text_warns_and_two_per_cent_fail() -> None:
    texts = probe_texts()
    assert proof_of(texts, set(texts[:1])).status == "warn"
    assert 1 / len(texts) <= TOLERATED
    assert proof_of(texts, set(texts[: len(texts) // 50])).status == "fail"


def test_a_token_too_few_fails() -> None:
    measured = {"vocabulary": [], "load": {"n_vocab": 7}}
    proof = vocabulary({"texts": [], "vocabulary_size": 8}, measured)
    assert proof.status == "fail" and "7 tokens" in proof.summary
