"""The vocabulary proof on made-up measurements: what passes, what warns, what fails."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from typing import Any

import pytest

from whet.engine.export.probe_corpus import probe_texts
from whet.engine.export.smoke_judge import vocabulary
from whet.engine.export.verdict import Proof


def proof_of(texts: list[str], differing: set[str], known: Collection[str] = ()) -> Proof:
    corpus = set(probe_texts())
    asked: list[dict[str, Any]] = [
        {
            "text": text,
            "ids": [1, 2],
            "special": [1, 2],
            "known": "decomposed" if text in known else None,
            "own": text not in corpus,
        }
        for text in texts
    ]
    answered = [{"ids": [3] if text in differing else [1, 2], "special": []} for text in texts]
    measured = {"vocabulary": answered, "load": {"n_vocab": 8}}
    return vocabulary({"texts": asked, "vocabulary_size": 8}, measured)


@pytest.fixture
def decomposed() -> set[str]:
    found = {text for text in probe_texts() if unicodedata.normalize("NFC", text) != text}
    assert len(found) >= 5
    return found


def test_equal_ids_pass(decomposed: set[str]) -> None:
    proof = proof_of(probe_texts(), set(), known=decomposed)
    assert proof.status == "pass" and "Known" not in proof.summary
    assert proof.evidence["known_differences"] == {}


def test_known_differences_on_odd_texts_pass_and_are_counted(decomposed: set[str]) -> None:
    proof = proof_of(probe_texts(), decomposed, known=decomposed)
    assert proof.status == "pass"
    assert f"{len(decomposed)} decomposed" in proof.summary
    assert proof.evidence["known_differences"] == {"decomposed": len(decomposed)}


def test_the_same_differences_without_a_cause_fail(decomposed: set[str]) -> None:
    assert proof_of(probe_texts(), decomposed).status == "fail"


def test_own_rows_with_a_known_difference_warn() -> None:
    own = "un cafe\u0301 de mes donne\u0301es"
    proof = proof_of([*probe_texts(), own], {own}, known={own})
    assert proof.status == "warn" and "your own" in proof.summary and "composed form" in proof.summary


def test_one_text_without_a_cause_fails() -> None:
    texts = probe_texts()
    assert proof_of(texts, set(texts[:1])).status == "fail"


def test_a_token_too_few_fails() -> None:
    measured = {"vocabulary": [], "load": {"n_vocab": 7}}
    proof = vocabulary({"texts": [], "vocabulary_size": 8}, measured)
    assert proof.status == "fail" and "7 tokens" in proof.summary
