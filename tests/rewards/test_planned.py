"""What a plan says of rewards before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from whet.engine import api
from whet.engine.errors import WhetError
from whet.engine.rewards.sandbox import programs

ROWS: list[dict[str, Any]] = [{"prompt": f"{number} + 1?", "answer": str(number + 1)} for number in range(12)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHET_OFFLINE", "1")
    (tmp_path / "mine.py").write_text(
        "with open('loads', 'a') as log: log.write('x')\n"
        "def right(completions, answer, **kwargs): return [0.0] * len(completions)\n"
        "def graded(completions, grade, **kwargs): return [0.0] * len(completions)\n"
    )
    return tmp_path


def plan(rows: list[dict[str, Any]], *rewards: Any, **data: Any) -> api.Plan:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"name": "demo"},
        "data": {"train": "rows.jsonl", **data},
        "method": {
            "kind": "grpo",
            "num_generations": 4,
            "max_completion_length": 16,
            "rewards": list(rewards),
        },
        "training": {"batch_size": 4, "gradient_accumulation": 1, "max_steps": 2},
    }
    return api.plan(api.Recipe.model_validate(recipe))


def test_functions_are_loaded_once_until_their_file_changes(folder: Path) -> None:
    loads = folder / "loads"
    assert plan(ROWS, {"function": "mine.py:right"}).resolved.method == "grpo"
    plan(ROWS, {"function": "mine.py:right"}, max_rows=11)
    assert loads.read_text() == "x"
    with open(folder / "mine.py", "a") as file:
        file.write("# changed\n")
    plan(ROWS, {"function": "mine.py:right"})
    assert loads.read_text() == "xx"


def test_functions_that_cannot_be_used_stop_the_plan() -> None:
    for spec, code in (
        ("mine.py:graded", "reward.missing_column"),
        ("mine.py:wrong", "reward.no_function"),
        ("yours.py:right", "reward.no_file"),
    ):
        with pytest.raises(WhetError) as error:
            plan(ROWS, {"function": spec})
        assert error.value.code == code


def test_rows_that_a_reward_cannot_judge_are_bad_rows() -> None:
    rows = [*ROWS, {"prompt": "many?", "answer": "many"}, {"prompt": "open?", "answer": None}]
    report = plan(rows, "number", bad_rows="skip").data.report
    assert (report.bad_rows, report.train.rows) == (1, 13)
    assert plan(rows, "exact_answer", bad_rows="skip").data.report.bad_rows == 0


def test_programs_that_cannot_be_confined_stop_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "write f", "tests": "assert f() == 1", "number": number} for number in range(12)]
    plan(rows, {"name": "code_tests", "seconds": 2})
    switched_off = "from whet.engine.rewards.sandbox import landlock; landlock.version = lambda: 0; from whet"
    monkeypatch.setattr(programs, "START", programs.START.replace("from whet", switched_off))
    with pytest.raises(WhetError, match="Landlock") as error:
        plan(rows, {"name": "code_tests", "seconds": 3})
    assert error.value.code == "reward.no_sandbox"
