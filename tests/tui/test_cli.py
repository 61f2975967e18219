"""Verbs that need no run: help, JSON, exit codes, errors, and text that tries to be more than text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import start_whet, whet

from whet.tui.cli import VERBS


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHET_OFFLINE", "1")
    return tmp_path / "home"


@pytest.fixture
def bad_rows(tmp_path: Path) -> Path:
    """Rows of which the second is broken, and the first holds markup and an escape sequence."""
    first = {
        "prompt": "what is [red]this[/red]? \x1b]0;owned\x07 \u202edesrever",
        "completion": "a test, 世界",
    }
    rows = [json.dumps(first, ensure_ascii=False), "{broken", json.dumps(first | {"completion": "another"})]
    path = tmp_path / "rows [bold].jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_bare_whet_prints_help() -> None:
    answer = whet()
    assert answer.code == 0
    assert all(f"\n  {verb}" in answer.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(verb: str) -> None:
    answer = whet(verb, "-h")
    assert answer.code == 0
    assert f"Usage: whet {verb}" in answer.out and "--json" in answer.out


@pytest.mark.parametrize(
    "words",
    [
        ("runs",),
        ("recipes",),
        ("schema",),
        ("template", "--list"),
        ("template", "demo", "demo", "--rows", "1"),
        ("data", "demo"),
        ("plan", "demo"),
    ],
    ids=" ".join,
)
def test_json_is_one_document_and_stderr_is_silent(words: tuple[str, ...]) -> None:
    answer = whet(*words, "--json")
    assert answer.code == 0
    assert isinstance(answer.json, dict | list)
    assert answer.err == ""


def test_doctor_exits_by_its_findings() -> None:
    answer = whet("doctor", "--json")
    errors = [finding for finding in answer.json["findings"] if finding["severity"] == "error"]
    assert answer.code == (1 if errors else 0)


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("plna",), 2, "usage"),
        (("plan",), 2, "usage"),
        (("runs", "--bogus"), 2, "usage"),
        (("data", "demo", "--column", "x"), 2, "usage"),
        (("plan", "nope.yaml"), 1, "recipe.not_found"),
        (("plan", "demo", "training.max_step=3"), 1, "recipe.unknown_key"),
        (("plan", "demo", "model.name=nobody/nothing"), 1, "model.not_found"),
        (("train", "demo", "data.train=nobody/nothing"), 1, "data.not_found"),
        (("data", "missing.jsonl"), 1, "data.not_found"),
        (("show", "nothing"), 1, "run.unknown"),
        (("attach",), 1, "run.none"),
        (("resume", "nothing"), 1, "run.unknown"),
        (("stop", "last"), 1, "run.none"),
        (("chat", "nothing", "-p", "hi"), 1, "run.unknown"),
        (("export", "nothing", "--gguf", "q4"), 1, "gguf.unknown_type"),
        (("export", "nothing", "--gguf", "q8_0,q4"), 1, "gguf.unknown_type"),
        (("export", "nothing", "--imatrix", "rows"), 2, "usage"),
        (("recipes", "--copy", "demo", "--to", "/dev/null/x"), 1, "recipe.not_writable"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_errors_have_a_code_in_json_and_words_without(words: tuple[str, ...], code: int, error: str) -> None:
    told = whet(*words, "--json")
    assert (told.code, told.json["error"]["code"]) == (code, error)
    assert told.json["error"]["message"] and told.err == ""
    said = whet(*words)
    assert said.code == code and said.out == ""
    assert "Error: " in said.err if error == "usage" else told.json["error"]["hint"] in said.err


def test_a_near_verb_is_named() -> None:
    assert "Did you mean 'plan'?" in whet("plna").err


@pytest.mark.parametrize("key", ["model.name", "data.train"])
def test_a_hub_id_offline_says_what_is_missing_and_what_to_set(key: str) -> None:
    answer = whet("plan", "demo", f"{key}=nobody/nothing")
    assert "nobody/nothing" in answer.err and "WHET_OFFLINE" in answer.err
    assert "Traceback" not in answer.err


def test_an_unwritable_home_is_an_error_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", "/dev/null/home")
    answer = whet("plan", "demo")
    assert answer.code == 1 and "WHET_HOME" in answer.err and "Traceback" not in answer.err


def test_errors_found_by_the_plan_block_the_start(tmp_path: Path) -> None:
    unanswered = tmp_path / "questions.jsonl"
    row = json.dumps({"messages": [{"role": "user", "content": "anyone there?"}]})
    unanswered.write_text(f"{row}\n" * 8, encoding="utf-8")
    words = ("demo", f"data.train={unanswered}", "data.eval=null", "--json")
    assert whet("plan", *words).code == 4
    blocked = whet("train", *words, "--detach")
    assert (blocked.code, blocked.json["error"]["code"]) == (4, "plan.blocked")
    assert {finding["severity"] for finding in blocked.json["findings"]} == {"error"}
    assert whet("runs", "--json").json == []


def test_overrides_show_as_such() -> None:
    out = whet("plan", "demo", "training.max_steps=30").out
    assert "overridden\ntraining.max_steps  30" in out
    assert not [line for line in out.splitlines() if line != line.rstrip()]


def test_copied_recipe_plans(tmp_path: Path) -> None:
    copied = Path(whet("recipes", "--copy", "demo", "--to", str(tmp_path), "--json").json["path"])
    assert whet("plan", str(copied)).code == 0
    again = whet("recipes", "--copy", "demo", "--to", str(tmp_path), "--json")
    assert again.json["error"]["code"] == "recipe.exists"


def test_bad_rows_are_listed_by_line_and_their_text_is_only_text(bad_rows: Path) -> None:
    report = whet("data", str(bad_rows))
    assert report.code == 0
    assert f"{bad_rows}:2  broken JSON" in report.out
    shown = whet("template", "demo", str(bad_rows), "--rows", "3")
    assert "rows [bold].jsonl:2  cannot be used: broken JSON" in shown.out
    assert "␛" in shown.out and "世" in shown.out
    for answer in (report, shown):
        assert not set(answer.out) & {"\x1b", "\x07", "\u202e"}


def test_template_marks_what_is_supervised(bad_rows: Path) -> None:
    view = whet("template", "demo", str(bad_rows), "--rows", "3", "--json").json
    first, broken, _ = view["rows"]
    answer = "".join(
        token["text"] for token in first["tokens"] if token["supervised"] and not token["special"]
    )
    assert answer.strip() == "a test, 世界"
    assert broken["problem"].startswith("broken JSON") and broken["tokens"] == []


def test_no_escape_codes_without_a_terminal_and_none_by_no_color() -> None:
    assert "\x1b" not in whet("plan", "demo").out + whet("doctor").out


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    process = start_whet("schema")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(30) == 0


def test_planning_loads_no_torch_and_listing_runs_no_planner() -> None:
    def loaded(*words: str) -> set[str]:
        script = (
            "import sys, atexit, whet.tui.cli as cli; "
            "atexit.register(lambda: print('\\n', *sys.modules)); cli.main()"
        )
        command = [sys.executable, "-P", "-c", script, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return set(done.stdout.splitlines()[-1].split())

    assert not loaded("plan", "demo", "--json") & {"torch", "transformers", "trl", "peft", "datasets"}
    assert not loaded("runs") & {"whet.engine.plan", "jinja2", "yaml", "numpy", "torch"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="completion is tested in bash's form")
def test_bash_completes_verbs_and_recipes() -> None:
    def completions(words: str, position: int) -> list[str]:
        environment = os.environ | {
            "_WHET_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(position),
        }
        process = start_whet(env=environment)
        out, _ = process.communicate(timeout=30)
        return [line.partition(",")[2] for line in out.splitlines()]

    assert completions("whet at", 1) == ["attach"]
    assert "lora-chat" in completions("whet train lora", 2)
