"""The whole path on a GPU, with the code a CPU uses: detached workers, every base precision, kill and resume.

Run by hand: `PYTHONPATH=src:tests python -P -m pytest -q -m gpu tests/gpu`; results are committed under
benchmarks/results/.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from whet.engine import api
from whet.engine.hardware import inspect_machine
from whet.engine.runs import supervisor

pytestmark = pytest.mark.gpu

QUICK = [
    "training.max_steps=40",
    "eval.every=40",
    "sampling.prompts=[]",
    "export.gguf=[]",
    "export.merged=false",
]
LONGEST_RUN = 240.0  # seconds


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    return tmp_path


def start(*overrides: str) -> str:
    return api.start(api.plan(api.recipe("demo", [*QUICK, *overrides])), started_by="test")


def finished(run_id: str) -> api.RunView:
    supervisor.wait(api.find(run_id), LONGEST_RUN)
    view = api.run(run_id)
    assert view.status == "finished", (view.state.error, api.find(run_id).log_tail())
    return view


def kill_at(run_id: str, step: int) -> None:
    """SIGKILL the worker when it has reported ``step``."""
    events: Iterator[api.Event] = api.follow(run_id)
    for event in events:
        if isinstance(event, api.StepEvent) and event.step == step:
            pid = api.find(run_id).read_state().pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            break
    supervisor.wait(api.find(run_id), LONGEST_RUN)


def losses(view: api.RunView) -> list[float]:
    return [step.loss for step in view.steps]


@pytest.mark.parametrize("precision", ["auto", "fp16", "fp32", "nf4", "int8"])
def test_every_base_precision_learns(precision: str) -> None:
    assert inspect_machine().gpus, "this suite needs a CUDA device"
    view = finished(start(f"model.precision={precision}"))
    seen = losses(view)
    assert view.plan is not None and view.plan.resolved.device == "cuda"
    assert view.plan.resolved.optimizer == "adamw_8bit"
    assert len(seen) == 40 and sum(seen[-5:]) < 0.5 * sum(seen[:5])
    assert view.evals[-1].loss < 0.5 * view.evals[0].loss
    assert all(step.memory_bytes > 2**20 for step in view.steps)


def test_full_finetuning_and_packing_learn() -> None:
    view = finished(start("adapter.kind=none", "training.learning_rate=1e-3", "method.packing=true"))
    assert losses(view)[-1] < 0.5 * losses(view)[0]


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_killed_and_resumed_run_has_the_uninterrupted_curve(precision: str) -> None:
    overrides = (f"training.precision={precision}", f"model.precision={precision}", "training.save_every=8")
    whole = finished(start(*overrides, "adapter.dropout=0.1"))
    killed = start(*overrides, "adapter.dropout=0.1")
    kill_at(killed, 21)
    assert api.run(killed).status == "interrupted"
    api.resume(killed)
    resumed = finished(killed)
    assert resumed.state.attempt == 2
    worst = max(abs(a - b) for a, b in zip(losses(whole), losses(resumed), strict=True))
    print(f"\nresume {precision}: largest difference of a loss {worst:.2e}")
    assert worst < (1e-5 if precision == "fp32" else 1e-3)


def test_the_second_run_waits_for_the_gpu() -> None:
    first = start("training.max_steps=200")
    for event in api.follow(first):
        if isinstance(event, api.StepEvent):
            break
    second = start()
    for waiting in api.follow(second):
        assert isinstance(waiting, api.PhaseEvent)
        assert waiting.phase == "wait"
        break
    assert api.run(second).status == "waiting"
    finished(first)
    view = finished(second)
    assert view.steps[0].time > api.run(first).steps[-1].time


def test_the_export_is_proven(home: Path) -> None:
    view = finished(start("export.gguf=[f16, q8_0, q4_k_m]", "export.merged=true"))
    assert view.verdict == "pass"
    kinds = {event.kind for event in view.exports}
    assert kinds >= {"adapter", "merged", "gguf", "modelfile", "card", "smoke"}
