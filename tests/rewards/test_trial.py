"""`whet rewards`: a recipe's rewards on answers that are there already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import whet

RECIPE = """
model: {name: demo}
data: {train: rows.jsonl}
method:
  kind: grpo
  rewards:
    - number
    - {function: mine.py:polite, weight: 0.5}
"""
ANSWERS: list[dict[str, Any]] = [
    {"prompt": "3 + 4?", "completion": "It is 7, please.", "answer": "7"},
    {"prompt": "3 + 5?", "completion": "[red]9[/red]\x1b]0;owned\x07", "answer": "8"},
    {"prompt": "hello", "completion": "please", "answer": None},
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "mine.py").write_text(
        "def polite(completions, **kwargs):\n    return [float('please' in one) for one in completions]\n"
    )
    write(tmp_path / "answers.jsonl", ANSWERS)
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_answers_are_scored_by_each_reward() -> None:
    trial = whet("rewards", "recipe.yaml", "--data", "answers.jsonl", "--json").json
    assert [(one["name"], one["applied"], one["mean"]) for one in trial["rewards"]] == [
        ("number", 2, 0.5),
        ("polite", 3, pytest.approx(2 / 3)),
    ]
    assert [(row["line"], row["total"]) for row in trial["rows"]] == [(1, 1.5), (2, 0.0), (3, 0.5)]
    assert trial["rows"][2]["values"] == {"number": None, "polite": 1.0}


def test_people_see_a_table_and_text_stays_text() -> None:
    answer = whet("rewards", "recipe.yaml", "--data", "answers.jsonl", "--rows", "2")
    assert answer.code == 0 and "\x1b" not in answer.out and "[red]9[/red]" in answer.out
    lines = [line.split()[:4] for line in answer.out.splitlines()]
    assert ["1", "1.5", "1", "1"] in lines and ["2", "0", "0", "0"] in lines


@pytest.mark.parametrize(
    ("rows", "change", "code", "said"),
    [
        ([{"prompt": "a"}], (), "reward.no_completion", "answers.jsonl:1 has no completion to score"),
        ([], (), "reward.no_completion", "holds no rows"),
        (
            [{"completion": "7", "answer": "seven"}],
            (),
            "reward.bad_column",
            "column answer of row 0, 'seven'",
        ),
        ([{"completion": "7"}], (), "reward.missing_column", "number needs the column answer"),
        (ANSWERS, ("method.rewards=[mine.py:rude]",), "reward.no_function", "has no rude"),
        (ANSWERS, ('method={"kind": "sft"}',), "reward.no_rewards", "method.kind=sft has no rewards"),
    ],
)
def test_what_cannot_be_scored_is_said(
    folder: Path, rows: list[dict[str, Any]], change: tuple[str, ...], code: str, said: str
) -> None:
    write(folder / "answers.jsonl", rows)
    answer = whet("rewards", "recipe.yaml", *change, "--data", "answers.jsonl", "--json")
    assert answer.code == 1
    assert answer.json["error"]["code"] == code and said in answer.json["error"]["message"]
