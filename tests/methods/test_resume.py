"""A run that was killed and resumed is the run that was never killed, bit for bit (CPU, fp32)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import build_tiny_model
from support.tiny_runs import tiny_recipe, write_chat_rows

TESTS = Path(__file__).parents[1]

# 22 rows in micro-batches of two and steps of two: the sixth step of an epoch is half a step.
TRAINING = {"max_steps": 9, "save_every": 2, "keep_checkpoints": 1}

PLAIN = {
    "first step": ("event", "step:1.", 1),
    "between checkpoints": ("event", "step:3.", 1),
    "after an evaluation, before its checkpoint": ("event", "eval:4.", 1),
    "after a checkpoint": ("event", "checkpoint:6.", 1),
    "second epoch": ("event", "step:9.", 1),
    "first checkpoint, last file": ("open", "step-000002/trainer_state.json", 1),
    "second checkpoint, only weights written": ("open", "step-000004/adapter_config.json", 1),
    "second checkpoint, without manifest": ("os.rename", "step-000004/.MANIFEST.json.new", 1),
    "rotation, before the manifest": ("os.remove", "step-000002/MANIFEST.json", 1),
    "rotation, after the manifest": ("shutil.rmtree", "step-000002", 1),
    "writing the result": ("os.rename", "export/.adapter.partial", 1),
}

OTHER = {
    "between checkpoints": ("event", "step:5.", 1),
    "in a checkpoint": ("open", "step-000004/trainer_state.json", 1),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "llama")


def kill_and_resume(folder: Path, model: Path, kills: dict[str, Any], **sections: Any) -> dict[str, Any]:
    rows = write_chat_rows(folder / "rows.jsonl", 22)
    held_out = write_chat_rows(folder / "held_out.jsonl", 5, seed=1)
    sections["training"] = TRAINING | sections.get("training", {})
    recipe = tiny_recipe(
        model, rows, data={"eval": str(held_out)}, eval={"every": 4, "batch_size": 2}, **sections
    )
    done = subprocess.run(
        [sys.executable, "-P", str(TESTS / "support" / "kill_driver.py")],
        input=json.dumps({"recipe": recipe.model_dump(mode="json"), "kills": kills}),
        env={
            **os.environ,
            "WHET_HOME": str(folder / "home"),
            "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)  # and so: nothing else was written to stdout
    assert report["reference"]["status"] == 0, done.stderr
    for name in kills:
        assert report[name]["killed"] == signal.SIGKILL, (
            f"{name}: the kill point was never met\n{done.stderr}"
        )
        assert report[name]["resumed"] == 0, f"{name}\n{done.stderr}"
    return report


def assert_same(report: dict[str, Any], kills: dict[str, Any]) -> None:
    reference = report["reference"]
    assert [step for step, *_ in reference["losses"]] == list(range(1, 10))
    assert len({loss for _, loss, *_ in reference["losses"]}) == 9
    for name in kills:
        for what in ("losses", "evals", "weights", "checkpoints"):
            assert report[name][what] == reference[what], f"{name}: {what} differ"


def test_killed_run_resumes_bit_for_bit(tmp_path: Path, model: Path) -> None:
    report = kill_and_resume(tmp_path, model, PLAIN)
    assert_same(report, PLAIN)
    # The kill points did what their names say: half a checkpoint was there, and did not count.
    assert report["first checkpoint, last file"]["left"] == ["step-000002"]
    assert report["second checkpoint, without manifest"]["left"] == ["step-000002", "step-000004"]


@pytest.mark.slow  # half a minute: `make slow`
def test_packed_8bit_checkpointed_run_resumes_bit_for_bit(tmp_path: Path, model: Path) -> None:
    training = {"optimizer": "adamw_8bit", "gradient_checkpointing": "on", "max_steps": 9}
    method = {"packing": True, "neftune_alpha": 5.0}
    adapter = {"kind": "rslora", "rank": 32, "dropout": 0.1}
    report = kill_and_resume(tmp_path, model, OTHER, training=training, method=method, adapter=adapter)
    assert_same(report, OTHER)
