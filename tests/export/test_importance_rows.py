"""Rows for an importance matrix: spread over what was trained on, or those of a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from support.tiny_models import build_tiny_model
from support.tiny_runs import tiny_recipe, write_chat_rows

from whet.engine.data.tokenization import RowTokenizer, TokenizerFiles
from whet.engine.errors import WhetError
from whet.engine.export.gguf.types import check_types
from whet.engine.export.importance_rows import (
    OWN_ROWS,
    ROW_TOKENS,
    check_importance,
    file_rows,
    rows_of,
    spread_rows,
    training_rows,
)
from whet.engine.plan import make_plan


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "llama")


def test_a_runs_rows_are_those_it_trained_on(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    rows, held_out = write_chat_rows(tmp_path / "rows.jsonl"), write_chat_rows(tmp_path / "held.jsonl", 6, 1)
    plan = make_plan(tiny_recipe(model, rows, data={"eval": str(held_out)}))
    whole = training_rows(plan, model)
    with pa.memory_map(str(plan.data.train)) as source:
        assert whole == pa.ipc.open_stream(source).read_all()["input_ids"].to_pylist()
    shutil.rmtree(plan.data.dir)
    assert training_rows(plan, model) == whole
    few = training_rows(plan, model, tokens=100)
    assert sum(map(len, few)) == 100 and all(row in whole for row in few[:-1])


def test_a_plan_says_that_the_rows_are_not_there(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    asked = {"gguf": ["iq2_xs"], "imatrix": str(tmp_path / "none.txt")}
    plan = make_plan(tiny_recipe(model, write_chat_rows(tmp_path / "rows.jsonl"), export=asked))
    (finding,) = [one for one in plan.findings if one.id == "X04"]
    assert finding.severity == "error" and "none.txt" in finding.title


def test_few_of_many_rows_reach_over_all_of_them() -> None:
    column = pa.chunked_array([[[row] * 10 for row in range(100)]])
    assert [row[0] for row in spread_rows(column, 100)] == list(range(0, 100, 10))
    assert [len(row) for row in spread_rows(pa.chunked_array([[list(range(1200))]]), 1100)] == [
        ROW_TOKENS,
        ROW_TOKENS,
        1100 - 2 * ROW_TOKENS,
    ]


@pytest.mark.parametrize("kind", ["txt", "text.jsonl", "chat.jsonl", "csv"])
def test_a_files_rows(tmp_path: Path, model: Path, kind: str) -> None:
    text = "The moon pulls the sea."
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]
    body = {
        "txt": text,
        "text.jsonl": json.dumps({"text": text}) + "\n",
        "chat.jsonl": json.dumps({"messages": messages}) + "\n",
        "csv": f'text\n"{text}"\n',
    }[kind]
    path = tmp_path / f"rows.{kind}"
    path.write_text(body)
    (row,) = file_rows(str(path), model)
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(model)).tokenizer
    shown = tokenizer.decode(row, skip_special_tokens=False)
    assert text in shown and ("<|user|>" in shown) == (kind == "chat.jsonl")


def test_what_cannot_give_rows(tmp_path: Path, model: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(WhetError) as caught:
        file_rows(str(tmp_path / "empty.txt"), model)
    assert caught.value.code == "gguf.no_importance_rows"
    for given, code in (("none.txt", "data.not_found"), ("none.gguf", "gguf.not_importance")):
        with pytest.raises(WhetError) as caught:
            check_importance(check_types(["q4_k_m"]), str(tmp_path / given), own_rows=True)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("kind", "given", "own", "refused"),
    [
        ("iq2_xs", None, False, True),
        ("iq2_xs", None, True, False),
        ("q4_k_m", None, False, False),
        ("q4_k_m", OWN_ROWS, False, True),
        ("q4_k_m", OWN_ROWS, True, False),
    ],
)
def test_rows_are_asked_for_where_they_are_needed(
    kind: str, given: str | None, own: bool, refused: bool
) -> None:
    if refused:
        with pytest.raises(WhetError, match=f"no rows .* {kind}"):
            check_importance(check_types([kind]), given, own)
    else:
        check_importance(check_types([kind]), given, own)


def test_own_rows_or_named_ones(tmp_path: Path, model: Path) -> None:
    (tmp_path / "rows.txt").write_text("The moon.")
    assert rows_of(None, model, lambda: [[1, 2]]) == ([[1, 2]], "rows trained on")
    rows, origin = rows_of(str(tmp_path / "rows.txt"), model, lambda: [[1, 2]])
    assert origin == "rows.txt" and rows != [[1, 2]]
