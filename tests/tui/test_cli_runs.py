"""Short runs from the command line: follow, outlive the terminal, die, resume; and runs without one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import SHORT, Answer, start_whet, whet
from support.fake_runs import until

from whet.engine import api
from whet.engine.runs.context import RunContext
from whet.engine.runs.events import EventLog, ExportEvent
from whet.engine.runs.locks import try_hold
from whet.engine.runs.store import RunDir, RunStore


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("home")
        patch.setenv("WHET_HOME", str(path))
        patch.setenv("WHET_OFFLINE", "1")
        yield path


@pytest.fixture(scope="module")
def followed() -> Answer:
    """`whet train` of a short run, followed to its end."""
    return whet("train", "demo", *SHORT, "--json")


def losses(run_id: str) -> dict[int, float]:
    return {step.step: step.loss for step in api.run(run_id).steps}


def prepared() -> RunDir:
    """A run's directory without a worker."""
    return RunStore().create(api.plan(api.recipe("demo")), "test")


def ended(status: str, smoke: str | None = None) -> RunDir:
    """A run whose worker left it in ``status``, with the verdict of one proof."""
    run = prepared()
    context = RunContext(run, 1, EventLog(run.events, 1))
    if smoke:
        context.emit(ExportEvent(kind="smoke", path="x.gguf", detail={"status": smoke, "proofs": []}))
    error = api.WhetError("test.code", "it \x1b[31mbroke [/red]") if status == "failed" else None
    context.close(status, error)  # type: ignore[arg-type]
    return run


def test_train_streams_events_and_ends_with_the_outcome(followed: Answer) -> None:
    first, *events, last = followed.lines
    assert followed.code == 0
    assert first["type"] == "run" and Path(first["path"]).is_dir()
    assert [event["step"] for event in events if event["type"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert events[-1]["type"] == "done"
    assert last == {"type": "end", "id": first["id"], "status": "finished", "verdict": None, "exit": 0}


def test_attach_replays_and_show_tells_the_same(followed: Answer) -> None:
    run_id = followed.lines[0]["id"]
    again = whet("attach", run_id[:-2], "--json")
    assert again.lines == followed.lines
    later = whet("attach", run_id, "--json", "--after", str(followed.lines[-2]["seq"] - 1))
    assert later.lines == [followed.lines[0], *followed.lines[-2:]]
    shown = whet("show", run_id, "--json").json
    assert shown["status"] == "finished" and len(shown["steps"]) == 6
    assert shown["fast_path"].startswith("attention ") and shown["fast_path"] in whet("show", run_id).out
    page = whet("attach", run_id).err
    assert "step 6/6" in page and "held-out loss" in page and "wrote" in page
    assert page.count(f"fast path: {shown['fast_path']}") == 1
    refused = whet("resume", run_id, "--json")
    assert (refused.code, refused.json["error"]["code"]) == (1, "run.finished")


def test_a_run_outlives_its_terminal_and_a_killed_worker_resumes_to_the_same_curve(followed: Answer) -> None:
    terminal = start_whet("train", "demo", *SHORT, "--json")
    assert terminal.stdout is not None
    run_id = json.loads(terminal.stdout.readline())["id"]
    for line in terminal.stdout:
        if json.loads(line).get("step") == 3:
            break
    os.killpg(terminal.pid, signal.SIGKILL)
    terminal.wait()
    run = api.find(run_id)
    assert run.alive()
    worker = run.read_state().pid
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    until(lambda: not run.alive(), "the end of the worker")
    assert {row["id"]: row["status"] for row in whet("runs", "--json").json}[run_id] == "interrupted"
    assert f"whet show {run_id} --log" in whet("show", run_id).out
    assert whet("attach", run_id).code == 5

    resumed = whet("resume", run_id, "--json")
    assert resumed.code == 0 and resumed.lines[-1]["status"] == "finished"
    assert losses(run_id) == pytest.approx(losses(followed.lines[0]["id"]), rel=1e-5)


def test_ctrl_c_detaches_and_says_how_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared()

    def interrupted(run_id: str, offset: int = 0) -> Iterator[api.Event]:
        yield api.StepEvent(
            step=1, total_steps=2, epoch=0, loss=1, learning_rate=0, grad_norm=0, tokens=1,
            supervised_tokens=1, seconds=1, memory_bytes=1,
        )  # fmt: skip
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "follow", interrupted)
    answer = whet("attach", run.id)
    assert answer.code == 130
    assert f"whet attach {run.id}" in answer.err and f"whet stop {run.id}" in answer.err
    assert run.control.stop_requested() is None


def test_stop_asks_once_for_a_checkpoint_and_twice_for_the_end() -> None:
    run = prepared()
    idle = whet("stop", run.id, "--json")
    assert (idle.code, idle.json["error"]["code"]) == (1, "run.not_running")
    lock = try_hold(run.lock)
    assert lock is not None
    assert whet("stop", run.id, "--json").json == {"id": run.id, "requested": "checkpoint"}
    assert "at once" in whet("stop", run.id).err
    lock.release()


@pytest.mark.parametrize(
    ("status", "smoke", "code"),
    [
        ("finished", "pass", 0),
        ("finished", "warn", 0),
        ("finished", "fail", 3),
        ("stopped", None, 5),
        ("failed", None, 1),
    ],
)
def test_exit_code_says_how_the_run_ended(status: str, smoke: str | None, code: int) -> None:
    run = ended(status, smoke)
    assert whet("attach", run.id, "--json").code == code
    told = whet("attach", run.id)
    assert told.code == code
    if code in (1, 5):
        assert f"whet resume {run.id}" in told.err


def test_a_failed_runs_words_are_shown_as_text() -> None:
    page = whet("show", ended("failed").id).out
    assert "test.code: it ␛[31mbroke [/red]" in page and "\x1b" not in page


def test_ids_are_never_cut_and_an_unclear_one_names_its_candidates() -> None:
    ids = {prepared().id, prepared().id}
    listed = whet("runs", "--limit", "100").out
    assert all(run_id in listed for run_id in ids)
    unclear = whet("show", "demo-", "--json").json["error"]
    assert unclear["code"] == "run.ambiguous" and unclear["message"].count("demo-") > 2


def test_a_run_is_made_for_others_to_start() -> None:
    made = whet("train", "demo", *SHORT, "--no-start")
    run = RunDir(Path(made.out.rstrip("\n")))
    assert made.code == 0 and run.status() == "queued" and not run.alive()
    assert run.load_plan().resolved.total_steps == 6 and run.read_state().attempt == 0
    told = whet("train", "demo", *SHORT, "--no-start", "--json").json
    assert told["type"] == "run" and Path(told["path"]).name == told["id"] != run.id
    both = whet("train", "demo", "--no-start", "--detach", "--json")
    assert (both.code, both.json["error"]["code"]) == (2, "usage")


def test_a_run_for_several_machines_is_left_to_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_CPU_RANKS", "1")
    wish = ("train", "demo", *SHORT, "hardware.machines=2")
    refused = whet(*wish, "--json").json["error"]
    assert refused["code"] == "run.machines" and "--no-start" in refused["hint"]
    made = whet(*wish, "--no-start", "--json").json
    assert api.find(made["id"]).load_plan().resolved.ranks == 2
    refused = whet("resume", made["id"], "--json").json["error"]
    assert refused["code"] == "run.machines" and "hardware.machines=1" in refused["hint"]


def test_a_resume_follows_its_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ended("stopped")
    monkeypatch.setattr("whet.engine.runs.supervisor._start", lambda run, lock, worker: lock.release())
    assert whet("resume", run.id, "training.max_steps=8", "sampling.prompts=[]", "--detach").code == 0
    replanned = run.load_plan()
    assert replanned.resolved.total_steps == 8 and replanned.recipe.sampling.prompts == []
    assert replanned.origins["training.max_steps"] == "override"
    wrong = whet("resume", run.id, "training.max_step=8", "--json")
    assert (wrong.code, wrong.json["error"]["code"]) == (1, "recipe.unknown_key")


def test_a_resume_refuses_what_is_fixed() -> None:
    refused = whet("resume", ended("stopped").id, "adapter.rank=8", "--json")
    assert (refused.code, refused.json["error"]["code"]) == (1, "run.fixed_setting")
