"""Two processes over gloo train as one does: the same rows in the same steps, the same losses (CPU, fp32)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import build_tiny_model
from support.tiny_runs import tiny_recipe, write_chat_rows

TESTS = Path(__file__).parents[1]
ONE, TWO = [{"ranks": 1}], [{"ranks": 2}]

# 22 rows in steps of four: the sixth step of an epoch has one micro-batch of two, which only one process has.
TRAINING = {"max_steps": 7, "save_every": 7, "keep_checkpoints": 1}
CLOSE = 1e-5


def drive(folder: Path, runs: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", str(TESTS / "support" / "rank_driver.py")],
        input=json.dumps(runs),
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
    assert done.returncode == 0, done.stderr[-4000:]
    report: dict[str, Any] = json.loads(done.stdout)
    for name, run in report.items():
        assert all(code == 0 for codes in run["codes"] for code in codes), f"{name}\n{done.stderr[-4000:]}"
    return report


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What runs of supervised fine-tuning saw; one process of this machine pays for all imports."""
    folder = tmp_path_factory.mktemp("ranks")
    models = {
        "fast": build_tiny_model(folder / "llama"),
        "plain": build_tiny_model(folder / "stablelm", "stablelm"),  # type: ignore[arg-type]
    }
    rows = write_chat_rows(folder / "rows.jsonl", 22)
    held_out = write_chat_rows(folder / "held_out.jsonl", 5, seed=1)

    def recipe(path: str, **sections: Any) -> dict[str, Any]:
        changed: dict[str, Any] = {
            "data": {"eval": str(held_out)},
            "eval": {"every": 6, "batch_size": 2},
            "adapter": {"dropout": 0.0},
            "training": TRAINING,
        }
        return tiny_recipe(models[path], rows, **changed | sections).model_dump(mode="json")

    packing = {"method": {"packing": True}, "model": {"max_length": 64}}
    dropping = {"adapter": {"dropout": 0.1}, "sampling": {"prompts": ["Why?"], "max_new_tokens": 2}}
    runs: dict[str, Any] = {
        "fast, one": (recipe("fast"), ONE),
        "fast, two": (recipe("fast"), TWO),
        "fast, two then one": (recipe("fast"), [{"ranks": 2, "stop": 3}, *ONE]),
        "fast, one then two": (recipe("fast"), [{"ranks": 1, "stop": 3}, *TWO]),
        "plain, one": (recipe("plain"), ONE),
        "plain, two": (recipe("plain"), TWO),
        "packed, one": (recipe("fast", **packing), ONE),
        "packed, two": (recipe("fast", **packing), TWO),
        "dropping, two": (recipe("fast", **dropping), TWO),
        "dropping, two then two": (recipe("fast", **dropping), [{"ranks": 2, "stop": 3}, *TWO]),
    }
    return drive(folder, {name: {"recipe": r, "attempts": a} for name, (r, a) in runs.items()})


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Losses, gradient norms and counts of every step, and held-out losses."""
    assert len(one["steps"]) == len(other["steps"]) == TRAINING["max_steps"]
    for (step, loss, norm, *counts), (step2, loss2, norm2, *counts2) in zip(
        one["steps"], other["steps"], strict=True
    ):
        assert (step, counts) == (step2, counts2)
        assert math.isclose(loss, loss2, rel_tol=CLOSE), f"step {step}: {loss} and {loss2}"
        assert math.isclose(norm, norm2, rel_tol=CLOSE), f"step {step}: norms {norm} and {norm2}"
    assert len(one["evals"]) == len(other["evals"]) > 0
    for (step, loss, rows, _), (step2, loss2, rows2, _) in zip(one["evals"], other["evals"], strict=True):
        assert (step, rows) == (step2, rows2)
        assert math.isclose(loss, loss2, rel_tol=CLOSE), f"held-out, step {step}: {loss} and {loss2}"
    assert one["summary"]["steps"] == other["summary"]["steps"]


@pytest.mark.parametrize("path", ["fast", "plain", "packed"])
def test_two_processes_have_the_losses_of_one(supervised: dict[str, Any], path: str) -> None:
    one, two = supervised[f"{path}, one"], supervised[f"{path}, two"]
    assert_alike(one, two)
    assert len({loss for _, loss, *_ in two["steps"]}) == TRAINING["max_steps"]


@pytest.mark.parametrize("change", ["two then one", "one then two"])
def test_resuming_with_another_number_of_processes_goes_on_with_the_curve(
    supervised: dict[str, Any], change: str
) -> None:
    resumed = supervised[f"fast, {change}"]
    assert_alike(supervised["fast, one"], resumed)
    said = [detail for detail in resumed["said"] if "resuming" in detail]
    assert len(said) == 1 and "random numbers of their own" in said[0]


def test_resuming_with_the_same_processes_is_bit_identical(supervised: dict[str, Any]) -> None:
    whole, resumed = supervised["dropping, two"], supervised["dropping, two then two"]
    assert whole["steps"] == resumed["steps"]
    assert whole["evals"] == resumed["evals"]
    assert whole["weights"] == resumed["weights"] and len(whole["weights"]) == 1
    assert whole["checkpoints"] == resumed["checkpoints"]


def test_dropout_was_at_work_there(supervised: dict[str, Any]) -> None:
    dropping, fast = supervised["dropping, two"]["steps"], supervised["fast, two"]["steps"]
    assert [step[3:] for step in dropping] == [step[3:] for step in fast]
    # An adapter's first step drops nothing that counts: B is zero.
    assert all(one[1] != other[1] for one, other in zip(dropping[1:], fast[1:], strict=True))


def test_samples_are_made_once(supervised: dict[str, Any]) -> None:
    # One prompt, answered before the first step and at both evaluations.
    assert supervised["dropping, two"]["samples"] == 3
