"""Jobs on trained weights: runs of their own that leave their parent's state alone."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.command_line import whet
from support.fake_runs import SOURCE, until
from support.live_runs import attempt
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, tiny_recipe, write_chat_rows

from whet.engine import api
from whet.engine.errors import WhetError
from whet.engine.export.smoke import SCRATCH
from whet.engine.runs import supervisor
from whet.engine.runs.locks import Lock, hold
from whet.engine.runs.store import RunDir, RunStore, trained_weights

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


def test_evaluation_on_other_rows_asks_their_own_questions(parent: RunDir, home: Path) -> None:
    rows = write_chat_rows(home / "other.jsonl", 6, seed=9)
    view = done(api.start_evaluation(parent.id, str(rows), max_rows=4, started_by="test"))
    assert view.state.summary["rows"] == 4 and view.state.summary["tuned_loss"] > 0
    asked = [json.loads(line)["messages"][0]["content"] for line in rows.read_text().splitlines()]
    prompts = {sample.prompt for sample in view.samples}
    assert len(prompts) == 3 and prompts <= set(asked)
    assert [job.id for job in api.run(parent.id).jobs][:1] == [view.id]


def test_full_finetuning_is_evaluated_by_its_whole_weights(home: Path, base: Path) -> None:
    run = train(home, base, adapter={"kind": "none", "dropout": 0.0})
    view = done(api.start_evaluation(run.id, started_by="test"))
    own, result = api.run(run.id).evals, view.state.summary
    assert result["base_loss"] == pytest.approx(own[0].loss, rel=1e-6)
    assert result["tuned_loss"] == pytest.approx(own[-1].loss, rel=1e-6)


def test_export_job_writes_into_its_parent_and_its_parent_tells(parent: RunDir) -> None:
    before = parent.state.read_bytes()
    job = api.start_export(parent.id, ["f16"], started_by="test", key="export it")
    assert api.start_export(parent.id, ["f16"], started_by="another", key="export it") == job
    view = done(job)
    file = next(Path(event.path) for event in view.exports if event.kind == "gguf")
    assert file.parent == parent.export and file.is_file()
    told = api.run(parent.id)
    assert {event.path for event in view.exports} <= {event.path for event in told.exports}
    assert told.verdict == view.verdict == view.state.summary["verdict"]
    assert parent.state.read_bytes() == before and told.status == "finished"
    assert api.find("last").id != job and api.chat_target(job).adapter == parent.export / "adapter"
    with pytest.raises(WhetError) as reused:
        api.start_export(parent.id, ["q8_0"], started_by="test", key="export it")
    assert reused.value.code == "run.key_reused"
    proof = done(api.start_smoke(file, parent.export / "adapter", started_by="test"))
    assert proof.state.parent == parent.id and proof.verdict == view.verdict


def test_failed_job_leaves_its_parent_alone(parent: RunDir) -> None:
    before, finished = parent.state.read_bytes(), api.run(parent.id)
    adapter = trained_weights(parent) / "adapter_model.safetensors"
    hidden = adapter.rename(adapter.with_suffix(".hidden"))
    try:
        view = ended(api.start_export(parent.id, merged=True, started_by="test"))
    finally:
        hidden.rename(adapter)
    assert view.status == "failed" and view.state.error is not None
    told = api.run(parent.id)
    assert (told.status, told.verdict, told.state.error) == ("finished", finished.verdict, None)
    assert parent.state.read_bytes() == before


def test_eval_on_the_command_line_follows_its_job(parent: RunDir) -> None:
    answer = whet("eval", parent.id, "--prompt", "a word", "--max-rows", "2", "--json")
    first, last = answer.lines[0], answer.lines[-1]
    assert (answer.code, first["type"], last["status"]) == (0, "run", "finished")
    assert first["id"].startswith("evaluate-tiny-") and answer.lines[-2]["summary"]["rows"] == 2
    page, of_parent = whet("show", first["id"]).out, whet("show", parent.id).out
    assert "perplexity" in page and parent.id in page and "a word" in page
    assert first["id"] in of_parent and first["id"] in whet("runs").out
    refused = whet("stop", first["id"], "--json").json["error"]
    assert refused["code"] == "run.not_running"


STARTER = """
import sys, threading
from whet.engine import api
print(api.start_export(sys.argv[1], ["q8_0"], started_by="agent"), flush=True)
threading.Event().wait()
"""


def test_export_outlives_its_launcher_s_group_and_a_killed_one_starts_over(parent: RunDir) -> None:
    with exporting(parent) as lock:
        starter = subprocess.Popen(
            [sys.executable, "-P", "-c", STARTER, parent.id], stdout=subprocess.PIPE, start_new_session=True
        )
        assert starter.stdout is not None
        job = api.find(starter.stdout.readline().decode().strip())
        os.killpg(starter.pid, signal.SIGKILL)
        starter.communicate()
        until(lambda: in_phase(job, "wait"), "the job to wait for the export before it", LONG)
        lock.release()
        until(lambda: list(parent.export.rglob(f"{SCRATCH}*")), "the proof to begin", LONG)
        os.killpg(job.read_state().pid or 0, signal.SIGKILL)
    until(lambda: job.status() == "interrupted", "the job to be seen dead")
    with pytest.raises(WhetError) as fixed:
        api.resume(job.id, ["training.max_steps=9"])
    assert fixed.value.code == "run.fixed_setting"
    api.resume(job.id)
    view = done(job.id)
    assert not [path for path in parent.export.iterdir() if path.name.startswith(".")]
    assert view.state.attempt == 2 and view.state.started_by == "agent"
    assert any(event.kind == "gguf" for event in view.exports)


def test_waiting_export_is_stopped_and_resumed(parent: RunDir) -> None:
    with exporting(parent):
        job = api.start_export(parent.id, ["f16"], smoke=False, started_by="test")
        until(lambda: in_phase(api.find(job), "wait"), "the job to wait", LONG)
        api.stop(job)
        assert supervisor.wait(api.find(job), LONG) == "stopped"
    api.resume(job)
    assert done(job).state.attempt == 2


def test_what_cannot_work_starts_nothing(parent: RunDir, home: Path, base: Path) -> None:
    untrained = create_run(tiny_recipe(base, write_chat_rows(home / "rows.jsonl")))
    before = {run.id for run in RunStore()}

    def refused(start: Callable[[], str]) -> str:
        with pytest.raises(WhetError) as caught:
            start()
        return caught.value.code

    assert refused(lambda: api.start_export(untrained.id, started_by="test")) == "export.untrained"
    assert refused(lambda: api.start_export(parent.id, ["q9"], started_by="test")) == "gguf.unknown_type"
    assert refused(lambda: api.start_evaluation(untrained.id, started_by="test")) == "export.untrained"
    assert refused(lambda: api.start_smoke(home / "no.gguf", base, started_by="test")) == "smoke.no_gguf"
    (untrained.export / "adapter").mkdir()
    assert refused(lambda: api.start_evaluation(untrained.id, started_by="test")) == "eval.no_rows"
    assert {run.id for run in RunStore()} == before


def test_job_on_files_of_no_run_is_a_run_without_a_plan(home: Path, base: Path) -> None:
    (home / "broken.gguf").write_bytes(b"no GGUF")
    view = ended(api.start_smoke(home / "broken.gguf", base, started_by="test"))
    assert view.plan is None and view.state.parent is None and view.id.startswith("smoke-broken-")
    assert view.verdict == "fail" or view.state.error is not None
    with pytest.raises(WhetError) as caught:
        api.find(view.id).load_plan()
    assert caught.value.code == "run.no_plan"


def in_phase(job: RunDir, phase: str) -> bool:
    events = api.events(job.id)[0]
    return any(isinstance(event, api.PhaseEvent) and event.phase == phase for event in events)


def exporting(parent: RunDir) -> Lock:
    """As if another export of the run were being written."""
    return hold(parent.export_lock)
