"""What a method cannot learn is refused by the plan: nobody waits for a job to hear it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_embedders import save_transformer

from whet.engine.errors import WhetError
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe

PAIRS = [{"anchor": f"dog {n}", "positive": f"cat {n}"} for n in range(8)]
SCORED = [{**row, "score": n / 4} for n, row in enumerate(PAIRS)]
LABELLED = [{"text": f"dog {n}", "label": n % 4} for n in range(12)]
ALONE = [{"text": f"dog {n}", "label": n} for n in range(12)]
TAGGED = [{"tokens": ["dog", f"cat{n}"], "tags": [0, n % 3]} for n in range(8)]
Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_transformer(tmp_path_factory.mktemp("models") / "bert", "bert")


def recipe(base: Path, folder: Path, rows: Rows, method: dict[str, Any], **keys: dict[str, Any]) -> Recipe:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(base), "max_length": 32},
        "data": {"train": str(path)},
        "method": method,
        "training": {"batch_size": 8, "threads": 1},
    }
    return Recipe.model_validate(values | {name: values.get(name, {}) | one for name, one in keys.items()})


@pytest.mark.parametrize(
    ("rows", "method", "batch", "code", "words"),
    [
        (PAIRS, {"kind": "embedding", "loss": "cosent"}, 8, "embedding.loss", "these rows are pairs"),
        (PAIRS, {"kind": "embedding"}, 1, "embedding.batch", "always be 0"),
        (LABELLED, {"kind": "embedding"}, 2, "embedding.batch", "an even number from 4 on"),
        (LABELLED, {"kind": "embedding"}, 5, "embedding.batch", "batch_size=5"),
        (ALONE, {"kind": "embedding"}, 4, "embedding.labels", "0 label"),
        (PAIRS, {"kind": "embedding", "matryoshka": [9999]}, 8, "embedding.matryoshka", "vectors have 64"),
        (SCORED, {"kind": "reranker"}, 8, "reranker.scores", "from 0 to 1.75"),
        (PAIRS, {"kind": "reranker", "loss": "mse"}, 8, "reranker.loss", "these rows are pairs"),
        (PAIRS, {"kind": "reranker"}, 1, "reranker.batch", "always be 0"),
        (
            LABELLED,
            {"kind": "classification", "label_names": ["a", "b"]},
            8,
            "classification.label_names",
            "no name for 2, 3",
        ),
        (
            TAGGED,
            {"kind": "token_classification", "label_names": ["O"]},
            8,
            "classification.label_names",
            "no name for 1, 2",
        ),
    ],
)
def test_a_plan_refuses_what_its_job_could_not_train(
    bert: Path, tmp_path: Path, rows: Rows, method: dict[str, Any], batch: int, code: str, words: str
) -> None:
    wanted = recipe(bert, tmp_path, rows, method, training={"batch_size": batch})
    with pytest.raises(WhetError) as caught:
        make_plan(wanted)
    assert caught.value.code == code and words in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("kind", ["classification", "reranker"])
def test_heads_are_not_trained_over_fp8(bert: Path, tmp_path: Path, kind: str) -> None:
    rows = LABELLED if kind == "classification" else PAIRS
    with pytest.raises(WhetError, match="does not train over model"):
        make_plan(recipe(bert, tmp_path, rows, {"kind": kind}, model={"precision": "fp8"}))


def test_what_can_be_trained_is_planned(bert: Path, tmp_path: Path) -> None:
    for rows, method in (
        (LABELLED, {"kind": "embedding", "matryoshka": [64, 16]}),
        (SCORED, {"kind": "reranker", "loss": "mse"}),
        (TAGGED, {"kind": "token_classification", "label_names": ["O", "B-X", "I-X"]}),
    ):
        assert make_plan(recipe(bert, tmp_path, rows, method)).resolved.total_steps > 0
