"""`whet data` and `whet template` on rows that are no chats: who reads them, what goes into the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import whet

from whet.engine import api

Rows = list[dict[str, Any]]
PAIRS = [{"question": f"what is {n}?", "passage": f"{n} is a number"} for n in range(12)]
TAGGED = [{"tokens": ["Anna", "sees", "Oslo"], "ner_tags": ["B-PER", "O", "B-LOC"]}] * 2
COMPARED = [{"prompt": f"say {n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(3)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def write(folder: Path, rows: Rows) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def viewed(path: Path, rows: int = 1) -> api.TemplateView:
    return api.template_view(
        {"model": {"name": "demo"}, "data": {"train": str(path), "bad_rows": "skip"}}, rows
    )


def text_of(preview: api.TemplatePreview, learnt: bool = False) -> str:
    return "".join(one.text for one in preview.tokens if not one.special and one.supervised >= learnt)


def test_data_says_layout_readers_columns_and_bad_rows(tmp_path: Path) -> None:
    path = write(tmp_path, [*PAIRS, {"question": "nothing else"}])
    answer = whet("data", str(path))
    assert answer.code == 0
    assert "pairs: anchor from question, positive from passage" in answer.out
    assert "12 usable, 1 bad" in answer.out and "rows.jsonl:13" in answer.out and "'passage'" in answer.out
    found = json.loads(whet("data", str(path), "--json").out)
    assert [one["method"] for one in found["uses"]][:2] == ["embedding", "reranker"]
    assert found["uses"][0]["columns"] == {"anchor": "question", "positive": "passage"}
    assert found["train"]["rows"] == 12 and "supervised" not in answer.out


def test_data_counts_classes_and_takes_another_method(tmp_path: Path) -> None:
    path = write(tmp_path, [{"text": f"note {n}", "label": "ab"[n % 3 == 0]} for n in range(9)])
    answer = whet("data", str(path))
    assert "a 6, b 3" in answer.out and "classification" in answer.out.split("read by")[1]
    other = json.loads(whet("data", str(path), "--method", "embedding", "--json").out)
    assert other["labels"] == {} and other["formats"][str(path)]["other"] == "labelled"
    text = json.loads(whet("data", str(path), "--method", "sft", "--json").out)
    assert text["formats"][str(path)]["format"] == "text"
    assert "none of sft" in whet("data", str(path), "--method", "nothing").err


def test_the_template_page_says_what_applies(tmp_path: Path) -> None:
    answer = whet("template", "demo", str(write(tmp_path, PAIRS)), "--rows", "1")
    assert answer.code == 0 and "No chat template writes these rows" in answer.out
    unwrapped = answer.out.replace("\n", "")
    assert unwrapped.count("rows.jsonl:1  ") == 2  # the two texts of a pair


def test_texts_are_shown_as_the_tokenizer_reads_them(tmp_path: Path) -> None:
    view = viewed(write(tmp_path, PAIRS))
    assert view.method == "embedding" and view.template is None
    assert [text_of(row) for row in view.rows] == ["what is 0?", "0 is a number"]
    assert not any(token.supervised for row in view.rows for token in row.tokens)


def test_the_first_token_of_each_word_carries_its_tag(tmp_path: Path) -> None:
    row = viewed(write(tmp_path, TAGGED)).rows[0]
    assert text_of(row) == "Anna sees Oslo"
    assert sum(token.supervised for token in row.tokens) == 3


def test_answers_are_shown_as_the_template_writes_them(tmp_path: Path) -> None:
    view = viewed(write(tmp_path, COMPARED))
    assert view.method == "preference" and view.template == "model" and "each answer" in view.note
    assert [text_of(row, learnt=True) for row in view.rows] == ["yes 0", "no"]


def test_pairs_read_together_are_one_input(tmp_path: Path) -> None:
    rows = [{"query": "what?", "document": "that", "score": n % 2} for n in range(3)]
    view = viewed(write(tmp_path, rows))
    assert view.method == "reranker" and [text_of(row) for row in view.rows] == ["what?that"]


def test_bad_rows_have_their_place(tmp_path: Path) -> None:
    view = viewed(write(tmp_path, [{"question": 5}, *PAIRS]), rows=2)
    assert view.rows[0].problem and view.rows[0].line == 1 and view.rows[1].line == 2
