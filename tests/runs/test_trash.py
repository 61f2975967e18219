"""Runs that are thrown away come back whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fake_runs import FakePlan, make_recipe

from whet.engine import api
from whet.engine.errors import WhetError
from whet.engine.runs import locks
from whet.engine.runs.store import RunStore


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path))


def test_thrown_away_and_back(tmp_path: Path) -> None:
    run = RunStore().create(FakePlan(recipe=make_recipe()), "test")  # type: ignore[arg-type]
    (run.export / "model.gguf").write_bytes(b"weights")
    assert api.trash(run.id) == run.id
    assert api.runs() == [] and (tmp_path / "trash" / run.id / "export" / "model.gguf").is_file()
    assert api.restore(run.id) == run.id
    assert [one.id for one in api.runs()] == [run.id] and (
        run.export / "model.gguf"
    ).read_bytes() == b"weights"


def test_a_living_run_stays() -> None:
    run = RunStore().create(FakePlan(recipe=make_recipe()), "test")  # type: ignore[arg-type]
    with locks.hold(run.lock), pytest.raises(WhetError) as error:
        api.trash(run.id)
    assert error.value.code == "run.alive" and run.path.is_dir()


def test_what_was_never_thrown_away() -> None:
    with pytest.raises(WhetError) as error:
        api.restore("nobody")
    assert error.value.code == "run.not_in_trash" and "nothing" in error.value.hint
