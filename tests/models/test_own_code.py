"""A model's own Python code runs by a person's word for exactly this code, and by nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.cached_models import COMMIT
from support.coded_models import build_coded_model
from support.fake_runs import SOURCE
from support.tiny_models import build_tiny_model
from support.tiny_runs import next_attempt, tiny_recipe, write_chat_rows

from whet.engine import api
from whet.engine.errors import WhetError
from whet.engine.methods.sft.loading import locate_base
from whet.engine.models.loading import Precision, load_model
from whet.engine.models.own_code import check_own_code, own_code
from whet.engine.runs.store import RunStore


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


@pytest.fixture
def model(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.chdir(tmp_path)
    return build_coded_model(tmp_path / "coded", mark)


def code_of(error: pytest.ExceptionInfo[WhetError]) -> str:
    return error.value.code


def test_a_model_without_code_has_nothing_to_allow(tmp_path: Path) -> None:
    assert own_code("x", build_tiny_model(tmp_path / "plain")) is None


def test_without_the_word_its_code_is_not_run(model: Path, mark: Path) -> None:
    with pytest.raises(WhetError) as error:
        load_model(model, Precision())
    assert code_of(error) == "model.remote_code" and not mark.exists()
    assert "--trust-remote-code" in error.value.hint and "--allow-remote-code" in error.value.hint


def test_a_folders_word_counts_for_its_code_as_it_is(model: Path) -> None:
    before = own_code(str(model), model)
    assert before is not None and before.startswith(f"{model}@") and own_code(str(model), model) == before
    with (model / "modeling_own.py").open("a") as file:
        file.write("# one more line\n")
    assert own_code(str(model), model) != before


def test_a_hub_models_word_names_its_commit(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / COMMIT
    shutil.copytree(model, snapshot)
    assert own_code("owner/name", snapshot) == f"owner/name@{COMMIT}"


def test_a_folder_cannot_pass_for_a_hub_model(model: Path, tmp_path: Path) -> None:
    """An agent can make folders inside of its root; none of them is what the operator's list names."""
    fake = tmp_path / "root" / "models--owner--name" / "snapshots" / COMMIT
    shutil.copytree(model, fake)
    shutil.copytree(model, tmp_path / "owner" / "name")
    for name, path in ((str(fake), fake), ("owner/name", fake), ("owner/name", tmp_path / "owner" / "name")):
        assert own_code(name, path) != f"owner/name@{COMMIT}"


def test_code_from_another_repository_is_never_run(tmp_path: Path, mark: Path) -> None:
    elsewhere = build_coded_model(tmp_path / "other", mark, module="other/repository--modeling_own")
    with pytest.raises(WhetError) as error:
        check_own_code("other", elsewhere)
    assert code_of(error) == "model.remote_code" and "other/repository" in error.value.message


def test_a_run_records_only_what_was_allowed_and_its_model_needs(model: Path, tmp_path: Path) -> None:
    plan = api.plan(tiny_recipe(model, write_chat_rows(tmp_path / "rows.jsonl")))
    mine = api.model_code(plan)
    store = RunStore()
    run = store.create(plan, "test", remote_code=mine)
    assert run.allowed_code() == {mine} and locate_base(next_attempt(run)) == (model, True)
    bare = store.create(plan, "test")
    assert bare.allowed_code() == frozenset() and locate_base(next_attempt(bare)) == (model, False)
    (model / "modeling_own.py").write_text("raise SystemExit")
    assert locate_base(next_attempt(run)) == (model, False)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_real_run_runs_it_only_with_the_word(
    model: Path, mark: Path, tmp_path: Path, allowed: bool
) -> None:
    recipe = tiny_recipe(model, write_chat_rows(tmp_path / "rows.jsonl"), training={"max_steps": 1})
    plan = api.plan(api.patched(recipe, {"accept": ["D16"]}))
    mine = api.model_code(plan)
    assert mine is not None
    words = frozenset({mine, f"owner/name@{COMMIT}"}) if allowed else frozenset({f"owner/name@{COMMIT}"})
    run = api.start(plan, "test", remote_code=words)
    events = list(api.follow(run))
    state = api.find(run).read_state()
    assert mark.exists() == allowed
    if allowed:
        assert state.status == "finished", events[-1]
    else:
        assert state.status == "failed" and state.error is not None
        assert state.error.code == "model.remote_code" and "--allow-remote-code" in state.error.hint
