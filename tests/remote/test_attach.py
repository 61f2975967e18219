"""`whet attach ssh://...` and `whet runs ssh://...`, with a stand-in for ssh that runs whet here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.command_line import whet
from support.fake_ssh import FakeSSH, install

from whet.engine import api
from whet.engine.remote import following
from whet.engine.runs.context import RunContext
from whet.engine.runs.events import EventLog, ExportEvent, StepEvent
from whet.engine.runs.store import RunDir, RunStore

STEPS = 5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    """A finished run of five steps whose proof failed, in a home of its own with a space in its path."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("remote") / "the home;id"
        patch.setenv("WHET_HOME", str(home))
        patch.setenv("WHET_OFFLINE", "1")
        made = RunStore().create(api.plan(api.recipe("demo")), "test")
        context = RunContext(made, 1, EventLog(made.events, 1))
        for step in range(1, STEPS + 1):
            context.emit(
                StepEvent(
                    step=step, total_steps=STEPS, epoch=0, loss=1 / step, learning_rate=0, grad_norm=0,
                    tokens=1, supervised_tokens=1, seconds=1, memory_bytes=1,
                )
            )  # fmt: skip
        context.emit(ExportEvent(kind="smoke", path="x.gguf", detail={"status": "fail", "proofs": []}))
        context.close("finished")
        yield made


@pytest.fixture
def ssh(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSSH:
    monkeypatch.setattr(following, "DELAYS", (0.0, 0.0))
    return install(tmp_path, monkeypatch)


def test_it_is_the_local_attach(run: RunDir, ssh: FakeSSH) -> None:
    ssh.tell(greeting="Welcome!\n{not json\n[also not]")
    local, remote = whet("attach", run.id, "--json"), whet("attach", f"ssh://me@box:22/{run.id}", "--json")
    assert remote.lines == local.lines and remote.code == local.code == 3
    assert [line.get("step") for line in remote.lines[1 : STEPS + 1]] == list(range(1, STEPS + 1))
    (words,) = ssh.calls
    assert "BatchMode=yes" in words and words[-3:-1] == ["--", "box"]
    shown = whet("attach", f"ssh://box/{run.id}")
    assert shown.code == 3 and "step 5/5" in shown.err
    assert f"{run.id} on box is finished, verdict: fail." in shown.err
    assert f"ssh box 'whet show {run.id}'" in shown.err


def test_a_home_and_a_program_of_ones_own(run: RunDir, ssh: FakeSSH, monkeypatch: pytest.MonkeyPatch) -> None:
    home = str(run.path.parents[1])
    monkeypatch.setenv("WHET_HOME", "/nowhere")
    program = Path(ssh.remote_path.partition(":")[0]) / "whet"
    ssh.tell(path="/usr/bin:/bin")
    address = f"ssh://box/last?home={home.replace(' ', '%20')}"
    missing = whet("attach", address, "--json").json["error"]
    assert missing["code"] == "remote.no_whet" and "?whet=/path/to" in missing["hint"]
    found = whet("attach", f"{address}&whet={program}", "--json")
    assert found.lines[0]["id"] == run.id and found.code == 3


def test_a_lost_connection_goes_on_behind_the_last_event(run: RunDir, ssh: FakeSSH) -> None:
    ssh.tell(drops_after=3)  # the start, two events, and half of the third
    remote = whet("attach", "ssh://box/last", "--json")
    assert remote.lines == whet("attach", run.id, "--json").lines and remote.code == 3
    assert "The connection to box is lost; try 1 of 2" in remote.err
    first, second = (words[-1] for words in ssh.calls)
    assert first == "whet attach last --json" and second == f"whet attach {run.id} --json --after 2"


def test_new_tries_are_bounded(run: RunDir, ssh: FakeSSH) -> None:
    ssh.tell(drops_after=3, fails_from=2, words="ssh: connect to host box port 22: No route to host")
    *seen, last = whet("attach", "ssh://box/last", "--json").lines
    assert [line["type"] for line in seen] == ["run", "step", "step"]
    assert last["error"]["code"] == "remote.lost" and "No route to host" in last["error"]["message"]
    assert len(ssh.calls) == 3


@pytest.mark.parametrize(
    ("told", "address", "code", "words"),
    [
        ({"fails_from": 1, "words": "box: \x1b[1mConnection refused"}, "ssh://box", "remote.unreachable",
         "box: ␛[1mConnection refused"),
        ({"fails_from": 1, "words": "Permission denied (publickey)."}, "ssh://box/last", "remote.unreachable",
         "Permission denied"),
        ({}, "ssh://box/other", "run.unknown", "On box: No run is called 'other'"),
        ({"replaced": {"2": '{"type": "thought", "v": 7}\n'}}, "ssh://box/last", "remote.event_unknown",
         "version 7, this whet knows 1"),
    ],
)  # fmt: skip
def test_errors_say_what_it_was(
    told: dict[str, object], address: str, code: str, words: str, ssh: FakeSSH
) -> None:
    ssh.tell(**told)
    answer = whet("attach", address, "--json")
    error = answer.lines[-1]["error"]
    assert (answer.code, error["code"]) == (1, code) and words in error["message"]
    assert len(ssh.calls) == 1


def test_without_ssh_it_is_said(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert whet("attach", "ssh://box", "--json").json["error"]["code"] == "remote.no_ssh"


def test_ctrl_c_detaches_and_ends_ssh(run: RunDir, ssh: FakeSSH, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    ssh.tell(hangs_after=2)
    monkeypatch.setattr("whet.tui.render.progress.Follower.show", interrupted)
    answer = whet("attach", "ssh://box/last")
    (pid,) = ssh.pids
    assert answer.code == 130 and not psutil.pid_exists(pid)
    assert "whet attach ssh://box/last" in answer.err and f"ssh box 'whet stop {run.id}'" in answer.err


def test_runs_of_another_machine(run: RunDir, ssh: FakeSSH) -> None:
    local, remote = whet("runs", "--json"), whet("runs", "ssh://box", "--json")
    assert remote.json == local.json and [row["id"] for row in remote.json] == [run.id]
    assert run.id in whet("runs", "ssh://box").out
    ssh.tell(replaced={"0": json.dumps([{"id": 1}]) + "\n"})
    assert whet("runs", "ssh://box", "--json").json["error"]["code"] == "remote.event_unknown"
