"""Rows of columns: which layout they have, what is stored, what is bad, how long they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.tiny_models import build_tiny_model

from whet.engine.data.token_store import PreparedData, prepare
from whet.engine.errors import WhetError
from whet.engine.recipe import Recipe

PAIR = {"query": "Where is Oslo?", "answer": "In Norway."}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "llama")


def prepared(model: Path, folder: Path, rows: list[dict[str, Any]], **data: Any) -> PreparedData:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = Recipe.model_validate(
        {
            "model": {"name": str(model), "max_length": data.pop("max_length", 64)},
            "data": {"train": str(path), **data},
            "method": {"kind": "embedding"},
        }
    )
    return prepare(recipe, model)


def stored(path: Path) -> list[dict[str, Any]]:
    with pa.memory_map(str(path)) as source:
        rows: list[dict[str, Any]] = pa.ipc.open_stream(source).read_all().to_pylist()
        return rows


@pytest.mark.parametrize(
    ("row", "name", "wanted"),
    [
        (PAIR, "pairs", {"anchor": "Where is Oslo?", "positive": "In Norway."}),
        (
            {**PAIR, "negative_10": "c", "negative": "a", "negative_2": "b"},
            "triplets",
            {
                "anchor": "Where is Oslo?",
                "positive": "In Norway.",
                "negative": "a",
                "negative_2": "b",
                "negative_10": "c",
            },
        ),
        (
            {"sentence1": "a", "sentence2": "b", "score": 0.25},
            "scored",
            {"anchor": "a", "positive": "b", "score": 0.25},
        ),
        (
            {"premise": "a", "hypothesis": "b", "label": 1},
            "scored",
            {"anchor": "a", "positive": "b", "score": 1.0},
        ),
        ({"text": "Hello", "label": 3}, "labelled", {"text": "Hello", "label": "3"}),
    ],
)
def test_layouts(model: Path, tmp_path: Path, row: dict[str, Any], name: str, wanted: dict[str, Any]) -> None:
    data = prepared(model, tmp_path, [row, row])
    assert data.report.format.other == name and data.report.format.format is None
    assert stored(data.train) == [{**wanted, "row": 0}, {**wanted, "row": 1}]
    assert data.report.train.duplicates == 1 and data.template_digest is None
    assert prepared(model, tmp_path, [row, row]).digest == data.digest


def test_lengths_are_of_the_longest_text_and_what_is_cut_is_counted(model: Path, tmp_path: Path) -> None:
    rows = [{"anchor": "a", "positive": "a b c"}, {"anchor": "word " * 40, "positive": "b"}]
    report = prepared(model, tmp_path, rows, max_length=16).report.train
    assert report.truncated_rows == 1 and report.places("truncated_rows") == [f"{tmp_path / 'rows.jsonl'}:2"]
    assert report.length.max > 16 and report.length.p50 < 16
    assert report.token_rows == 2 and report.supervised_tokens == report.tokens > 16
    assert report.max_token_id > 0


def test_bad_rows_are_named(model: Path, tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [{"query": "x", "answer": ""}, {"query": "x"}, {**PAIR, "answer": None}]
    rows: list[dict[str, Any]] = [*[PAIR] * 30, *bad]
    with pytest.raises(
        WhetError, match=r"rows.jsonl:31: field 'answer' is empty.*:32: .*missing.*:33: .*null"
    ):
        prepared(model, tmp_path, rows)
    assert prepared(model, tmp_path, rows, bad_rows="skip").report.bad_rows == 3


def test_other_rows_are_refused_with_what_is_read(model: Path, tmp_path: Path) -> None:
    with pytest.raises(WhetError, match=r"no layout that method.kind=embedding.*fields are: a, b") as caught:
        prepared(model, tmp_path, [{"a": "1", "b": "2"}])
    assert "triplets" in caught.value.hint and "data.columns" in caught.value.hint
    named = prepared(model, tmp_path, [{"a": "1", "b": "2"}], columns={"anchor": "a", "positive": "b"})
    assert stored(named.train)[0] == {"anchor": "1", "positive": "2", "row": 0}


def test_held_out_rows_have_the_same_columns(model: Path, tmp_path: Path) -> None:
    rows = [{"anchor": f"q {number}", "positive": f"a {number}"} for number in range(200)]
    data = prepared(model, tmp_path, rows, eval_fraction=0.2)
    assert data.eval is not None and data.report.eval is not None
    assert 20 < data.report.eval.rows < 60 and data.report.train.rows == 200 - data.report.eval.rows
    held = {row["anchor"] for row in stored(data.eval)}
    assert held.isdisjoint(row["anchor"] for row in stored(data.train))
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "a", "label": "b"}) + "\n", encoding="utf-8")
    with pytest.raises(WhetError, match="same columns"):
        prepared(model, tmp_path, rows, eval=str(other))
