"""whet-job.sh makes one run, goes on with it, and ends with what a scheduler must know."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import SHORT
from support.fake_runs import until

from whet.engine.runs.store import RunDir

FOLDER = Path(__file__).parents[2] / "docs" / "deploy"
STUBS = {
    # Prints a folder for `train`, a status for `show`, and ends `attach` with the code that is written there.
    "whet": """
        echo "whet $*" >> calls
        case $1 in
            train) mkdir -p run/control; echo "$PWD/run" ;;
            show) echo "{\\"status\\": \\"$(cat status)\\"}" ;;
            attach) exit "$(cat code)" ;;
        esac
    """,
    "python": f"""
        if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi
        echo "python $* RANK=${{RANK-}}" >> calls
        trap 'echo told >> calls; kill $!; exit 0' TERM
        if [ -e waits ]; then touch started; sleep 30 & wait $!; fi
    """,
    "torchrun": 'echo "torchrun $*" >> calls',
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the stand-ins; a run there is queued, and would end with 0."""
    for name, text in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "status").write_text("queued")
    (tmp_path / "code").write_text("0")
    return tmp_path


def start(place: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}"} | variables
    command = [str(FOLDER / "whet-job.sh"), "note", "recipe.yaml", *words]
    return subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> int:
    """Its exit code; one that does not end is killed."""
    try:
        process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode


def job(place: Path, *words: str, **variables: str) -> int:
    return ended(start(place, *words, **variables))


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().splitlines()


def test_the_run_is_made_once_and_its_worker_started_each_time(place: Path) -> None:
    (place / "code").write_text("5")
    assert job(place, "training.epochs=1", RANK="3", WORLD_SIZE="8") == 5
    assert job(place, "training.epochs=1") == 5
    assert [call.split()[1] for call in calls(place) if call.startswith("whet")] == [
        "train", "show", "attach", "show", "attach",
    ]  # fmt: skip
    assert calls(place)[0] == "whet train recipe.yaml training.epochs=1 --no-start"
    worker = f"python -m whet.engine.runs.worker {place}/run RANK="
    assert calls(place).count(worker) == 2


def test_a_finished_run_is_left_alone(place: Path) -> None:
    assert job(place) == 0
    (place / "status").write_text("finished")
    (place / "code").write_text("3")  # the proof failed
    assert job(place) == 3
    assert len([call for call in calls(place) if call.startswith("python")]) == 1


def test_whoever_ended_the_run_by_hand_wants_no_new_start(place: Path) -> None:
    (place / "code").write_text("5")
    assert job(place) == 5
    (place / "run" / "control" / "stop").touch()
    assert job(place) == 0


def test_findings_end_the_job_before_it_has_a_run(place: Path) -> None:
    (place / "whet").write_text("#!/bin/bash\nexit 4\n")
    assert job(place) == 4 and not (place / "note").exists()


def test_sigterm_reaches_the_worker(place: Path) -> None:
    (place / "waits").touch()
    (place / "code").write_text("5")
    process = start(place)
    until((place / "started").exists, "the worker")
    process.send_signal(signal.SIGTERM)
    assert ended(process) == 5 and "told" in calls(place)


def test_several_machines_share_one_run(place: Path) -> None:
    both = {"NODES": "2", "GPUS": "4", "MASTER_ADDR": "first", "MASTER_PORT": "1234"}
    second = start(place, NODE_RANK="1", **both)
    assert job(place, NODE_RANK="0", **both) == 0
    assert ended(second) == 0
    made = [call for call in calls(place) if call.startswith("whet train")]
    assert made == ["whet train recipe.yaml hardware.machines=2 hardware.gpus=8 --no-start"]
    started = [call for call in calls(place) if call.startswith("torchrun")]
    assert sorted(call.split("--node-rank ")[1][0] for call in started) == ["0", "1"]
    assert all(call.endswith(f"-m whet.engine.runs.worker {place}/run") for call in started)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_bucket_gets_what_the_command_left_and_gives_it_back(tmp_path: Path, slash: str) -> None:
    bucket, home = tmp_path / "bucket", tmp_path / "home"
    (bucket / "runs").mkdir(parents=True)
    (bucket / "runs" / "old").write_text("from before")
    command = ["bash", "-c", f'cat "{home}/runs/old"; echo new > "{home}/runs/new"; exit 5']
    words = [str(FOLDER / "whet-sync.sh"), f"{bucket}{slash}", *command]
    environment = os.environ | {"WHET_HOME": str(home)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (5, "from before")
    assert (bucket / "runs" / "new").read_text() == "new\n"


def test_another_program_copies_from_and_to_the_address_itself(tmp_path: Path) -> None:
    """Behind the slash stands nothing: to `aws s3 sync`, s3://mine/. is the folder called dot."""
    (tmp_path / "copy").write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/calls\n')
    (tmp_path / "copy").chmod(0o755)
    environment = os.environ | {"WHET_HOME": str(tmp_path), "COPY": f"{tmp_path}/copy s3 sync"}
    words = [str(FOLDER / "whet-sync.sh"), "s3://mine", "true"]
    assert subprocess.run(words, env=environment, timeout=60, check=False).returncode == 0
    assert calls(tmp_path) == [f"s3 sync s3://mine/ {tmp_path}/", f"s3 sync {tmp_path}/ s3://mine/"]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended with the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_two_machines_are_taken_away_and_go_on(
    tmp_path: Path, machines: list[subprocess.Popen[bytes]]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home, note = tmp_path / "home", tmp_path / "note"
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "WHET_HOME": str(home),
        "WHET_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NODES": "2", "GPUS": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    words = [str(FOLDER / "whet-job.sh"), str(note), "demo", *SHORT, "training.max_steps=40"]

    def both() -> list[subprocess.Popen[bytes]]:
        pair = [subprocess.Popen(words, env=environment | {"NODE_RANK": rank}) for rank in "01"]
        machines.extend(pair)
        return pair

    first = both()
    until(lambda: note.exists() and note.read_text(), "the run", 120)
    run = RunDir(Path(note.read_text().strip()))
    until(lambda: run.events.exists() and b'"type":"step"' in run.events.read_bytes(), "a step", 120)
    for process in first:
        process.terminate()
    assert [process.wait(60) for process in first] == [5, 5]
    assert run.status() == "stopped" and run.read_state().last_checkpoint is not None
    assert [process.wait(240) for process in both()] == [0, 0]
    events = [json.loads(line) for line in run.events.read_text().splitlines()]
    steps = [event["step"] for event in events if event["type"] == "step"]
    assert run.status() == "finished" and sorted(set(steps)) == list(range(1, 41))
    assert steps == sorted(steps)  # nothing was done twice
