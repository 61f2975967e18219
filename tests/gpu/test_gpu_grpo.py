"""Reinforcement learning on the device: answers by the captured step, rising rewards, a resume.

Run by hand: `PYTHONPATH=src:tests python -P -m pytest -q -m gpu tests/gpu/test_gpu_grpo.py`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from statistics import fmean

import pytest
from support.comparisons import steps
from support.live_runs import attempt
from support.scored import decided_model, prompts, recipe
from support.tiny_runs import create_run, next_attempt

from whet.engine.methods.grpo.job import GRPOTraining
from whet.engine.models.fast_path import program_of
from whet.engine.plan import make_plan
from whet.engine.runs.store import RunStore

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("turns", [1, 2])
def test_answers_come_from_the_captured_step_and_rewards_rise(tmp_path: Path, turns: int) -> None:
    tiny = decided_model(tmp_path / "model")
    plan = make_plan(recipe(tiny, tmp_path, prompts(), training={"max_steps": 16}))
    assert plan.resolved.answers % turns == 0
    divided = plan.model_copy(update={"resolved": plan.resolved.model_copy(update={"turns": turns})})
    run = RunStore().create(divided, "test")
    training = GRPOTraining(next_attempt(run))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="generate runs transformers' own code")
        training.run(run.export / "adapter")
    program = program_of(training.handle.model)
    assert program is not None and program.decoding is not None and program.decoding.graph is not None
    rewards = [step.metrics["rewards/letters"] for step in steps(run)]
    assert fmean(rewards[-3:]) > fmean(rewards[:3]) + 0.1
    assert all(step.metrics["clipped"] == 0 for step in steps(run))  # one step a generation: nothing moved


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    tiny = decided_model(tmp_path / "model")
    method = {"steps_per_generation": 4, "num_iterations": 2, "beta": 0.1}
    wanted = recipe(tiny, tmp_path, prompts(), method=method, training={"max_steps": 5})
    whole = create_run(wanted)
    assert attempt(whole, method=GRPOTraining) == "finished"
    run = create_run(wanted)
    assert attempt(run, stop_after=3, method=GRPOTraining) == "stopped"
    assert attempt(run, method=GRPOTraining) == "finished"
    resumed = {step.step: step for step in steps(run)}
    for step in steps(whole):
        assert resumed[step.step].loss == pytest.approx(step.loss, rel=0.05, abs=1e-3)
        assert resumed[step.step].tokens == step.tokens
