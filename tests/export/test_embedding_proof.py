"""Embedding models of each family: the GGUF's vectors are sentence-transformers' own; faults are named."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gguf_faults import DROP, rewrite
from support.tiny_embedders import EMBEDDERS, build_embedder, real_minilm

from whet.engine.export.embedding_judge import COSINE_GATES, judge_embedding
from whet.engine.export.embedding_texts import short_texts
from whet.engine.export.gguf.convert import convert
from whet.engine.export.gguf.quantize import quantize
from whet.engine.export.smoke import Baseline, prove, reference_of
from whet.engine.export.verdict import Proof, Verdict

STEPS = ["vocabulary", "special tokens", "configuration", "vectors", "neighbours"]
Healthy = Callable[[str], tuple[Path, Baseline]]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Healthy]:
    """A family's f32 file and what it is held against; both are made once."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        @cache
        def make(name: str) -> tuple[Path, Baseline]:
            folder = build_embedder(tmp_path_factory.mktemp(name) / "model", name)
            gguf = convert(folder, folder.parent / "model-f32.gguf", "f32")
            return gguf, stack.enter_context(reference_of(folder))

        yield make


def proof(verdict: Verdict, name: str) -> Proof:
    return next(one for one in verdict.proofs if one.name == name)


RARER = {"mistral", "qwen2", "roberta"}
"""Shapes that no planted fault needs: `make slow`."""


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow if one in RARER else ()) for one in EMBEDDERS]
)
def test_the_healthy_file_passes(name: str, healthy: Healthy) -> None:
    gguf, baseline = healthy(name)
    verdict = prove(gguf, baseline, keep=False)
    assert {one.name: one.status for one in verdict.proofs} == dict.fromkeys(STEPS, "pass")
    vectors = proof(verdict, "vectors").evidence
    assert vectors["mean"] > 0.99999 and vectors["min"] > 0.99999 and vectors["longest"] > 250
    assert max(abs(ratio - 1) for ratio in vectors["length"]) < 1e-3


@pytest.mark.parametrize("name", EMBEDDERS)
def test_the_reference_is_what_sentence_transformers_computes(name: str, healthy: Healthy) -> None:
    from sentence_transformers import SentenceTransformer

    gguf, baseline = healthy(name)
    model = SentenceTransformer(str(gguf.parent / "model"), device="cpu")
    wanted = model.encode(list(short_texts()), show_progress_bar=False)
    given = np.load(baseline.work / "vectors.npy")[: len(wanted)]
    if baseline.facts["normalize"]:
        given = given / np.linalg.norm(given, axis=1, keepdims=True)
    assert baseline.facts["normalize"] == EMBEDDERS[name].normalize
    np.testing.assert_allclose(given, wanted, atol=1e-5 * float(np.abs(wanted).max()))


def zeroed(part: str) -> Callable[[str, np.ndarray], np.ndarray]:
    return lambda name, data: np.zeros_like(data) if part in name else data


def scaled(part: str, factor: float) -> Callable[[str, np.ndarray], np.ndarray]:
    return lambda name, data: data * data.dtype.type(factor) if part in name else data


def moved(part: str) -> Callable[[str, np.ndarray], np.ndarray]:
    return lambda name, data: np.roll(data, 1, axis=0) if part in name else data


def reversed_rows(part: str) -> Callable[[str, np.ndarray], np.ndarray]:
    return lambda name, data: data[::-1].copy() if part in name else data


FAULTS: dict[str, tuple[str, dict[str, Any], Any, str]] = {
    "first token for mean": ("bert", {"bert.pooling_type": 2}, None, "vectors"),
    "wrong pooling is a wrong value": ("bert", {"bert.pooling_type": 2}, None, "configuration"),
    "mean for last token": ("qwen3", {"qwen3.pooling_type": 1}, None, "vectors"),
    "no pooling": ("xlm-r", {"bert.pooling_type": DROP}, None, "vectors"),
    "cased": ("bert", {"tokenizer.ggml.normalizer.lowercase": False}, None, "vocabulary"),
    "another epsilon": ("bert", {"bert.attention.layer_norm_epsilon": 1e-5}, None, "configuration"),
    "causal": ("bge", {"bert.attention.causal": True}, None, "configuration"),
    "not causal": ("qwen3", {"qwen3.attention.causal": False}, None, "vectors"),
    "another SEP": ("bge", {"tokenizer.ggml.seperator_token_id": 4}, None, "special tokens"),
    "no end of text": ("qwen3", {"tokenizer.ggml.add_eos_token": False}, None, "special tokens"),
    "half the window": ("modernbert", {"modern-bert.attention.sliding_window": 8}, None, "vectors"),
    "other windowed layers": (
        "modernbert", {"modern-bert.attention.sliding_window_pattern": [True, False, True]}, None, "vectors",
    ),
    "another rotary base": ("embeddinggemma", {"gemma-embedding.rope.freq_base": 1e4}, None, "configuration"),
    "no token types": ("bert", {}, zeroed("token_types"), "vectors"),
    "positions moved by one": ("xlm-r", {}, moved("position_embd"), "vectors"),
    "no dense layer": ("embeddinggemma", {}, zeroed("dense_3"), "vectors"),
    "twice as long": ("qwen3", {}, scaled("output_norm", 2.0), "vectors"),
    "a bias lost": ("bge", {}, zeroed("blk.1.attn_v.bias"), "vectors"),
    "rows swapped": ("modernbert", {}, reversed_rows("blk.1.attn_output"), "vectors"),
    "a search finds another text": ("bge", {}, reversed_rows("token_embd.weight"), "neighbours"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_its_proof(fault: str, healthy: Healthy, tmp_path: Path) -> None:
    name, changes, tensors, failing = FAULTS[fault]
    gguf, baseline = healthy(name)
    verdict = prove(rewrite(gguf, tmp_path / "broken.gguf", changes, tensors), baseline, keep=False)
    found = proof(verdict, failing)
    assert verdict.status == found.status == "fail", verdict.model_dump_json(indent=1)
    assert found.evidence and found.fix


def test_a_wrong_f16_spoils_what_is_made_from_it(healthy: Healthy, tmp_path: Path) -> None:
    gguf, _ = healthy("bert")
    folder = gguf.parent / "model"
    right = convert(folder, tmp_path / "right.gguf", "f16")
    wrong = rewrite(right, tmp_path / "f16.gguf", tensors=scaled("blk.2.layer_output_norm.weight", 1.1))
    with reference_of(folder) as baseline:
        assert proof(prove(wrong, baseline, keep=False), "vectors").status == "fail"
        derived = quantize(wrong, tmp_path / "q8_0.gguf", "q8_0").path
        second = proof(prove(derived, baseline, keep=False), "vectors")
    assert second.status == "fail" and "f16 file" in second.summary


def test_the_real_minilm(tmp_path: Path) -> None:
    """The gates leave room for healthy files, and little of it."""
    least = {"f16": 0.99999, "q8_0": 0.999, "q4_k_m": 0.97}
    f16 = convert(real_minilm(), tmp_path / "f16.gguf", "f16")
    with reference_of(real_minilm()) as baseline:
        for kind, bound in least.items():
            path = f16 if kind == "f16" else quantize(f16, tmp_path / f"{kind}.gguf", kind).path
            verdict = prove(path, baseline, keep=False)
            assert verdict.status in ("pass", "warn") and not verdict.failures()
            assert bound < proof(verdict, "vectors").evidence["mean"] <= 1
        assert proof(verdict, "vocabulary").evidence["known"]  # the real one shows llama.cpp's differences


def test_gates_are_ordered() -> None:
    order = ("f16", "bf16", "q8", "q6", "q5", "q4", "q3", "q2")
    for finer, coarser in itertools.pairwise(order):
        assert all(a >= b for a, b in zip(COSINE_GATES[finer], COSINE_GATES[coarser], strict=True))


def test_a_crash_leaves_the_proofs_before_it() -> None:
    assert judge_embedding({}, {}, "f16") == []
