"""Rerankers as runs: they learn, go on where they stopped, and score the same without whet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder
from support.live_runs import attempt
from support.tiny_embedders import save_transformer
from support.tiny_runs import create_run, events_of, next_attempt

from whet.engine.errors import WhetError
from whet.engine.methods.reranker.job import RerankerTraining
from whet.engine.methods.reranker.ranking import samples_of
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.events import EvalEvent, StepEvent
from whet.engine.runs.store import RunDir

GOOD = ["fine", "good", "great", "nice", "best"]
BAD = ["bad", "awful", "poor", "worst", "dull"]
QUERIES = [
    f"what about the {thing}" for thing in ("car", "house", "lamp", "boat", "chair", "tree", "shirt", "stone")
]
PAIRS = [("what about the car", "good fine"), ("what about the car", "awful dull")]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_transformer(root / name, name) for name in ("bert", "xlm-r", "modernbert", "qwen3")}


def triplets() -> list[dict[str, Any]]:
    """Whatever the question, what is praised answers it."""
    return [
        {"query": query, "positive": f"{one} {GOOD[place - 1]}", "negative": f"{BAD[place - 2]} {other}"}
        for query in QUERIES
        for place, (one, other) in enumerate(zip(GOOD, BAD, strict=True))
    ]


def scored() -> list[dict[str, Any]]:
    return [
        {"query": row["query"], "document": row[name], "score": score}
        for row in triplets()
        for name, score in (("positive", 0.9), ("negative", 0.1))
    ]


def numbered() -> list[dict[str, Any]]:
    """Pairs, no text of which comes twice."""
    return [
        {"query": f"{number} {row['query']}", "positive": f"{row['positive']} {number}"}
        for number, row in enumerate(triplets())
    ]


def recipe(model: Path, folder: Path, examples: list[dict[str, Any]], **sections: dict[str, Any]) -> Recipe:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_length": 32},
        "data": {"train": str(path)},
        "method": {"kind": "reranker"},
        "adapter": {"rank": 8, "alpha": 16},
        "eval": {"every": 100, "batch_size": 16},
        "training": {
            "max_steps": 8, "batch_size": 4, "gradient_accumulation": 2, "learning_rate": 5e-3,
            "optimizer": "adamw", "save_every": 3, "warmup": 0, "threads": 1,
        },
    }  # fmt: skip
    return Recipe.model_validate(
        {name: values.get(name, {}) | sections.get(name, {}) for name in values | sections}
    )


def steps(run: RunDir) -> dict[int, StepEvent]:
    return {event.step: event for event in events_of(run) if isinstance(event, StepEvent)}


def finished(wanted: Recipe) -> RunDir:
    run = create_run(wanted)
    assert attempt(run, method=RerankerTraining) == "finished"
    return run


@pytest.mark.parametrize(
    ("name", "kind", "rate"),
    [("bert", "lora", 5e-3), ("bert", "none", 1e-3), ("xlm-r", "lora", 5e-3), ("modernbert", "lora", 5e-3),
     ("qwen3", "lora", 2e-3)],
)  # fmt: skip
def test_it_learns_and_plain_cross_encoder_gives_the_same_scores(
    folders: dict[str, Path], tmp_path: Path, name: str, kind: str, rate: float
) -> None:
    run = finished(
        recipe(folders[name], tmp_path, triplets(), data={"eval_fraction": 0.3}, adapter={"kind": kind},
               training={"max_steps": 60, "learning_rate": rate, "save_every": 100})
    )  # fmt: skip
    first, last = [event for event in events_of(run) if isinstance(event, EvalEvent)]
    assert last.loss < 0.5 * first.loss
    assert {"mrr@10", "ndcg@10"} <= last.metrics.keys()
    folder = run.export / ("adapter" if kind == "lora" else "model")
    plain = CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    training = RerankerTraining(next_attempt(run))
    training.trainer.load_weights(folder)
    np.testing.assert_allclose(plain, training.model.predict(PAIRS), atol=1e-5)
    assert plain[0] > 0.7 and plain[1] < 0.3


def test_a_stopped_run_goes_on_where_it_was(folders: dict[str, Path], tmp_path: Path) -> None:
    wanted = recipe(folders["bert"], tmp_path, triplets(), adapter={"dropout": 0.1},
                    method={"loss": "multiple_negatives"}, training={"max_steps": 9})  # fmt: skip
    whole = {step: event.loss for step, event in steps(finished(wanted)).items()}
    run = create_run(wanted)
    assert attempt(run, stop_after=5, method=RerankerTraining) == "stopped"
    assert attempt(run, method=RerankerTraining) == "finished"
    assert {step: event.loss for step, event in steps(run).items()} == whole and len(whole) == 9


@pytest.mark.parametrize(
    ("rows", "method"),
    [
        (scored(), {}),
        (scored(), {"loss": "mse"}),
        (triplets(), {"loss": "cached_multiple_negatives", "mini_batch_size": 4}),
        (numbered(),
         {"negatives": 2}),
    ],
)  # fmt: skip
def test_every_layout_trains(
    folders: dict[str, Path], tmp_path: Path, rows: list[dict[str, Any]], method: dict[str, Any]
) -> None:
    run = finished(recipe(folders["bert"], tmp_path, rows, method=method, training={"max_steps": 3}))
    seen = steps(run)
    assert len(seen) == 3 and all(np.isfinite(event.loss) and event.tokens > 0 for event in seen.values())


def test_the_ranking_rises_with_training(folders: dict[str, Path], tmp_path: Path) -> None:
    """Held-out queries of scored documents, which only those who learned can tell apart."""
    run = finished(
        recipe(folders["bert"], tmp_path, scored(), data={"eval_fraction": 0.4}, method={"candidates": 2},
               training={"max_steps": 40, "save_every": 100})
    )  # fmt: skip
    first, last = [event for event in events_of(run) if isinstance(event, EvalEvent)]
    assert last.metrics["ndcg@10"] > 0.97 > first.metrics["ndcg@10"]


def test_candidates_are_the_querys_own_then_others() -> None:
    rows = [
        {"anchor": "a", "positive": "1", "negative": "x"},
        {"anchor": "a", "positive": "2", "negative": "1"},
        {"anchor": "b", "positive": "3", "negative": "x"},
    ]
    first, second = samples_of(rows, 4)
    assert first == {"query": "a", "positive": ["1", "2"], "negative": ["x", "3"]}
    assert second["positive"] == ["3"] and second["negative"][0] == "x" and len(second["negative"]) == 3
    of_scores = [
        {"anchor": "a", "positive": "1", "score": 0.9},
        {"anchor": "a", "positive": "2", "score": 0.2},
    ]
    assert samples_of(of_scores, 2) == [{"query": "a", "positive": ["1"], "negative": ["2"]}]
    assert samples_of([{"anchor": "a", "positive": "1"}], 5) == []


def test_bad_rows_are_refused_with_the_reason(folders: dict[str, Path], tmp_path: Path) -> None:
    bert = folders["bert"]
    with pytest.raises(WhetError, match=r"no layout that method.kind=reranker"):
        make_plan(recipe(bert, tmp_path, [{"query": "a", "label": 1}]))


def test_the_plan_counts_pairs(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = triplets()
    assert make_plan(recipe(folders["bert"], tmp_path, rows)).resolved.texts_per_row == 2
    more = recipe(folders["bert"], tmp_path, rows, method={"loss": "multiple_negatives"})
    assert make_plan(more).resolved.texts_per_row == 6
    cached = recipe(folders["bert"], tmp_path, rows, method={"loss": "cached_multiple_negatives"})
    assert make_plan(cached).resolved.texts_per_row == 2
