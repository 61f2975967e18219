"""Whatever ends a training, its state says so, finished checkpoints stay, and a resume goes on from them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import build_tiny_model
from support.tiny_runs import tiny_recipe, write_chat_rows

TESTS = Path(__file__).parents[1]
SMALL_DISK = 'set -e; mount -t tmpfs -o size=8m,mode=700 whet-test "$WHET_HOME"; exec "$@"'
MISHAPS: dict[str, dict[str, Any]] = {
    "crash": {},
    "lost data": {},
    # The rate is reached after two harmless steps.
    "not finite": {"learning_rate": 1e15, "warmup": 2, "max_grad_norm": 0, "save_every": 1},
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run without and runs with each mishap left behind; see `support/ending_driver.py`.

    Where the system allows it, the runs' home is a small disk of its own that really fills up.
    """
    folder = tmp_path_factory.mktemp("endings")
    home = folder / "home"
    home.mkdir()
    model = build_tiny_model(folder / "llama")
    recipe = tiny_recipe(model, write_chat_rows(folder / "rows.jsonl"))
    mishaps, before = MISHAPS, list[str]()
    unshare = shutil.which("unshare") or "unshare"
    if can_mount(unshare, home):
        mishaps = MISHAPS | {"disk full": {}}
        before = [unshare, "-rm", "sh", "-c", SMALL_DISK, "sh"]
    done = subprocess.run(
        [*before, sys.executable, "-P", str(TESTS / "support" / "ending_driver.py")],
        input=json.dumps({"recipe": recipe.model_dump(mode="json"), "mishaps": mishaps}),
        env={
            **os.environ,
            "WHET_HOME": str(home),
            "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)  # and so: nothing else was written to stdout
    assert found["reference"]["status"] == "finished", done.stderr
    assert [step for step, _ in found["reference"]["losses"]] == [1, 2, 3, 4, 5, 6]
    return found


def can_mount(unshare: str, folder: Path) -> bool:
    trial = [unshare, "-rm", "mount", "-t", "tmpfs", "t", str(folder)]
    return shutil.which(unshare) is not None and subprocess.run(trial).returncode == 0


def assert_went_on(report: dict[str, Any], mishap: str) -> None:
    """The resumed run ended as the one that met no mishap, with the same losses."""
    resumed, reference = report[mishap]["resumed"], report["reference"]
    for what in ("status", "error", "last event", "last_checkpoint", "checkpoints", "folders", "losses"):
        assert resumed[what] == reference[what], f"after {mishap}: {what}"


def test_a_crash(report: dict[str, Any]) -> None:
    met = report["crash"]["met"]
    assert (met["signal"], met["status"], met["error"]) == (signal.SIGKILL, "interrupted", None)
    assert (met["last event"], met["checkpoints"]) == ("step", ["step-000002"])
    assert_went_on(report, "crash")


def test_lost_data(report: dict[str, Any]) -> None:
    met = report["lost data"]["met"]
    assert (met["status"], met["error"], met["last event"]) == ("failed", "data.not_found", "error")
    assert_went_on(report, "lost data")


def test_a_loss_that_is_not_finite(report: dict[str, Any]) -> None:
    for end in (report["not finite"]["met"], report["not finite"]["resumed"]):
        assert (end["status"], end["error"], end["last event"]) == ("failed", "train.not_finite", "error")
        last = end["losses"][-1][0]
        assert end["checkpoints"] == end["folders"] == [f"step-{step:06d}" for step in (last - 1, last)]
        assert end["last_checkpoint"] == end["checkpoints"][-1]


def test_a_full_disk(report: dict[str, Any]) -> None:
    if "disk full" not in report:
        pytest.skip("needs user namespaces that may mount a tmpfs")
    met = report["disk full"]["met"]
    assert (met["status"], met["error"], met["last event"]) == ("failed", "run.disk_full", "error")
    assert [step for step, _ in met["losses"]] == [1, 2, 3, 4]
    assert met["checkpoints"] == met["folders"] == ["step-000002"]
    assert met["last_checkpoint"] == "step-000002"
    assert_went_on(report, "disk full")
