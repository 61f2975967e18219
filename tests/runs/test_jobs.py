"""Jobs on trained weights: runs of their own that leave their parent's state alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_runs import SOURCE
from support.live_runs import attempt
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, tiny_recipe, write_chat_rows

from whet.engine import api
from whet.engine.runs import supervisor
from whet.engine.runs.store import RunDir

LONG = 120.0


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("home")
        patch.setenv("WHET_HOME", str(path / "whet"))
        patch.setenv("WHET_OFFLINE", "1")
        patch.setenv("PYTHONPATH", str(SOURCE))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield path


@pytest.fixture(scope="module")
def base(home: Path) -> Path:
    return build_tiny_model(home / "base")


def train(home: Path, base: Path, **sections: dict[str, object]) -> RunDir:
    rows, held = write_chat_rows(home / "rows.jsonl"), write_chat_rows(home / "held.jsonl", 7, seed=5)
    data: dict[str, object] = {"train": str(rows), "eval": str(held)}
    run = create_run(tiny_recipe(base, rows, data=data, **sections))
    assert attempt(run) == "finished"
    return run


@pytest.fixture(scope="module")
def parent(home: Path, base: Path) -> RunDir:
    return train(home, base)


def ended(job_id: str) -> api.RunView:
    assert supervisor.wait(api.find(job_id), LONG) in ("finished", "failed", "stopped")
    return api.run(job_id)


def done(job_id: str) -> api.RunView:
    view = ended(job_id)
    assert view.status == "finished", api.log(job_id, 30).lines
    return view


def test_evaluation_is_the_run_s_own_measure_of_base_and_tuned(parent: RunDir) -> None:
    before = parent.state.read_bytes()
    view = done(api.start_evaluation(parent.id, prompts=["a word"], started_by="test"))
    own, result = api.run(parent.id).evals, view.state.summary
    assert result["base_loss"] == pytest.approx(own[0].loss, rel=1e-6)
    assert result["tuned_loss"] == pytest.approx(own[-1].loss, rel=1e-6)
    assert result["tuned_loss"] < result["base_loss"]
    assert result["tuned_perplexity"] == pytest.approx(math.exp(own[-1].loss), rel=1e-6)
    assert (result["rows"], result["supervised_tokens"]) == (7, own[-1].supervised_tokens)
    assert [sample.prompt for sample in view.samples] == ["a word", "a word"]
    assert [event.step for event in view.evals] == [0, 6]
    assert parent.state.read_bytes() == before
