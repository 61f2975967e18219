"""Classifiers and rerankers leave as plain folders, proven by their outputs; other files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from support.live_runs import attempt
from support.tiny_embedders import save_transformer
from support.tiny_runs import create_run, events_of
from transformers import pipeline

from whet.engine.errors import WhetError
from whet.engine.export.head_merge import _compare
from whet.engine.export.of_run import export_finished
from whet.engine.export.pipeline import ExportResult
from whet.engine.methods.classification.job import ClassificationTraining
from whet.engine.methods.reranker.job import RerankerTraining
from whet.engine.methods.token_classification.job import TokenClassificationTraining
from whet.engine.plan import make_plan
from whet.engine.recipe import ExportSection, Recipe
from whet.engine.runs.events import EvalEvent, ExportEvent
from whet.engine.runs.store import RunDir

CLASSES = [{"text": f"{one} {other}", "label": name} for name, words in
           {"animal": ["dog", "cat", "bird"], "place": ["rome", "oslo", "paris"]}.items()
           for one in words for other in words]  # fmt: skip
TAGGED = [{"tokens": ["see", word], "tags": ["O", "B-X"]} for word in ("rome", "oslo", "dog", "cat")]
RANKED = [{"query": f"what {n}", "positive": f"good {n}", "negative": f"bad {n}"} for n in range(9)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


def recipe(folder: Path, kind: str, rows: list[dict[str, Any]], model: str, **export: Any) -> Recipe:
    base = folder / model
    if not base.is_dir():
        save_transformer(base, model)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Recipe.model_validate(
        {
            "model": {"name": str(base), "max_length": 32},
            "data": {"train": str(path)},
            "method": {"kind": kind},
            "export": export,
            "training": {
                "max_steps": 6, "batch_size": 4, "gradient_accumulation": 1, "learning_rate": 5e-3,
                "optimizer": "adamw", "warmup": 0, "threads": 1,
            },
        }
    )  # fmt: skip


def exported(wanted: Recipe, method: Any) -> tuple[RunDir, ExportResult]:
    run = create_run(wanted)
    assert attempt(run, method=method) == "finished"
    return run, export_finished(run, make_plan(wanted), {}, lambda event: None)


@pytest.mark.parametrize("model", ["bert", "modernbert", "qwen3"])
def test_a_merged_classifier_answers_as_the_trained_one(tmp_path: Path, model: str) -> None:
    run, result = exported(
        recipe(tmp_path, "classification", CLASSES, model, merged=True), ClassificationTraining
    )
    assert result.status == "pass" and result.verdicts[0].proofs[0].name == "merge"
    merged = result.paths["merged"]
    say: Any = pipeline("text-classification", model=str(merged), device="cpu", top_k=None)
    assert {one["label"] for one in say("dog bird")[0]} == {"animal", "place"}
    assert not (merged / "adapter_config.json").exists() and (run.export / "README.md").is_file()


def test_a_merged_tagger_answers(tmp_path: Path) -> None:
    _, result = exported(
        recipe(tmp_path, "token_classification", TAGGED, "bert", merged=True), TokenClassificationTraining
    )
    assert result.status == "pass"
    tag: Any = pipeline("token-classification", model=str(result.paths["merged"]), device="cpu")
    assert {one["entity"] for one in tag("see rome", ignore_labels=[])} <= {"O", "B-X"}


def test_a_merged_reranker_scores_as_the_trained_one(tmp_path: Path) -> None:
    run, result = exported(recipe(tmp_path, "reranker", RANKED, "bert", merged=True), RerankerTraining)
    assert result.status == "pass"
    pairs = [("what 1", "good 1"), ("what 2", "bad 2")]
    adapter = CrossEncoder(str(run.export / "adapter"), device="cpu").predict(pairs)
    merged = CrossEncoder(str(result.paths["merged"]), device="cpu").predict(pairs)
    np.testing.assert_allclose(merged, adapter, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "rows"),
    [("classification", CLASSES), ("token_classification", TAGGED), ("reranker", RANKED)],
)
def test_gguf_is_refused_before_training(tmp_path: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    plan = make_plan(recipe(tmp_path, kind, rows, "bert", gguf=["q8_0"]))
    blocked = [one for one in plan.blocked() if one.id == "X04"]
    assert blocked and "head of classes or scores leaves as" in blocked[0].title
    assert blocked[0].fix is not None and blocked[0].fix.patch == {"export.gguf": []}


def test_gguf_is_refused_after_training(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, "classification", CLASSES, "bert")
    run, _ = exported(wanted, ClassificationTraining)
    for asked in ({"gguf": ["f16"]}, {"fp8": True}, {"merged_4bit": True}, {"adapter_gguf": True}):
        section = ExportSection.model_validate(asked)
        with pytest.raises(WhetError, match="classes or scores leaves as"):
            export_finished(run, make_plan(wanted), {}, lambda event: None, section)
    assert not [one for one in events_of(run) if isinstance(one, EvalEvent)]
    assert [one.kind for one in events_of(run) if isinstance(one, ExportEvent)] == ["adapter"]


def test_wrong_outputs_fail_the_proof() -> None:
    right = [torch.tensor([[1.0, -2.0]])]
    assert _compare(right, [torch.tensor([[1.0, -2.00001]])], torch.float32).status == "pass"
    wrong = _compare(right, [torch.tensor([[1.0, -1.9]])], torch.float32)
    assert wrong.status == "fail" and wrong.fix and wrong.evidence["largest_difference"] == pytest.approx(0.1)
    broken = _compare(right * 2, [right[0], torch.tensor([[1.0, float("nan")]])], torch.float32)
    assert broken.status == "fail"
