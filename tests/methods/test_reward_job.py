"""Reward models as runs: they tell good from bad, go on where they stopped, load plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from support import comparisons
from support.comparisons import pairs, ratings, steps
from support.live_runs import attempt
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, events_of, next_attempt
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from whet.engine.errors import WhetError
from whet.engine.export.of_run import export_run
from whet.engine.methods.preference.trainers import open_answers
from whet.engine.methods.reward.job import RewardTraining
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched
from whet.engine.runs.events import FAST_PATH, EvalEvent, PhaseEvent
from whet.engine.runs.store import RunDir


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "llama")


def recipe(model: Path, folder: Path, rows: list[dict[str, Any]], **sections: dict[str, Any]) -> Recipe:
    method = {"kind": "reward"} | sections.pop("method", {})
    return comparisons.recipe(model, folder, rows, **sections, method=method)


def finished(wanted: Recipe) -> RunDir:
    run = create_run(wanted)
    assert attempt(run, method=RewardTraining) == "finished"
    return run


def test_it_learns_and_plain_transformers_scores_the_same(tiny: Path, tmp_path: Path) -> None:
    wanted = recipe(
        tiny, tmp_path, pairs(),
        data={"eval_fraction": 0.25}, training={"max_steps": 12}, eval={"every": 12, "batch_size": 8},
    )  # fmt: skip
    run = finished(wanted)
    first, last = [event for event in events_of(run) if isinstance(event, EvalEvent)]
    assert last.loss < first.loss - 0.3
    assert last.metrics["accuracy"] > 0.9 and last.metrics["margin"] > 1
    folder = run.export / "adapter"
    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base.config.pad_token_id = tokenizer.pad_token_id
    model = PeftModel.from_pretrained(base, folder).eval()
    plan = run.load_plan()
    assert plan.data.eval is not None
    row = open_answers(plan.data.eval)[0]
    own = RewardTraining(next_attempt(run))
    own.trainer.load_weights(folder)
    scores = []
    for name in ("chosen_ids", "rejected_ids"):
        ids = torch.tensor([row["prompt_ids"] + row[name]])
        scores.append(model(ids).logits.item())
        assert own.headed.model.eval()(ids).logits.item() == pytest.approx(scores[-1], abs=1e-5)
    assert scores[0] > scores[1]


def test_thirty_steps_on_the_fast_path_are_those_of_trl(tiny: Path, tmp_path: Path) -> None:
    """All rows in each step, so that their order does not count."""
    settings = {
        "batch_size": 8, "gradient_accumulation": 1, "max_steps": 30, "scheduler": "constant",
        "weight_decay": 0, "learning_rate": 1e-3,
    }  # fmt: skip
    run = create_run(recipe(tiny, tmp_path, pairs()[:8], training=settings, method={"center": 0.01}))
    training = RewardTraining(next_attempt(run))
    said = [event.detail for event in events_of(run) if isinstance(event, PhaseEvent)]
    assert f"{FAST_PATH}attention 2/2, mlp 2/2" in said
    training.headed.model.save_pretrained(tmp_path / "fresh")
    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
    base.config.pad_token_id = training.headed.tokenizer.pad_token_id
    model = PeftModel.from_pretrained(base, tmp_path / "fresh", is_trainable=True)
    names = ("chosen_ids", "rejected_ids")
    stored = open_answers(training.data.train)
    rows = [{name: row["prompt_ids"] + row[name] for name in names} for row in stored]
    arguments = RewardConfig(
        output_dir=str(tmp_path / "trl"), max_steps=30, per_device_train_batch_size=8, learning_rate=1e-3,
        lr_scheduler_type="constant", optim="adamw_torch", weight_decay=0.0, bf16=False, use_cpu=True,
        max_grad_norm=training.recipe.training.max_grad_norm or 1e9, center_rewards_coefficient=0.01,
        gradient_checkpointing=False, logging_steps=1, report_to="none", disable_tqdm=True,
        save_strategy="no", max_length=None, adam_beta2=training.recipe.training.beta2,
        adam_epsilon=training.recipe.training.epsilon,
    )  # fmt: skip
    plain = RewardTrainer(
        model, args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=training.headed.tokenizer,
    )  # fmt: skip
    training.trainer.train()
    plain.train()
    ours = [event.loss for event in steps(run)]
    theirs = [log["loss"] for log in plain.state.log_history if "loss" in log]
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert len(ours) == 30 and ours[-1] < 0.9 * ours[0]


def test_a_stopped_run_goes_on_where_it_was(tiny: Path, tmp_path: Path) -> None:
    wanted = recipe(tiny, tmp_path, pairs(), adapter={"dropout": 0.1}, training={"max_steps": 5})
    whole = [step.loss for step in steps(finished(wanted))]
    run = create_run(wanted)
    assert attempt(run, stop_after=2, method=RewardTraining) == "stopped"
    assert attempt(run, method=RewardTraining) == "finished"
    assert list({step.step: step.loss for step in steps(run)}.values()) == whole


def test_rated_answers_and_gguf_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(WhetError, match="no layout"):
        make_plan(recipe(tiny, tmp_path, ratings()))
    plan = make_plan(recipe(tiny, tmp_path, pairs(), export={"gguf": ["f16"]}))
    assert any("head" in finding.title for finding in plan.blocked())
    with pytest.raises(WhetError, match="fp8"):
        make_plan(patched(recipe(tiny, tmp_path, pairs()), {"model.precision": "fp8"}))


def test_merged_weights_score_as_the_trained_model(tiny: Path, tmp_path: Path) -> None:
    run = finished(recipe(tiny, tmp_path, pairs(), export={"merged": True}))
    result = export_run(next_attempt(run))
    merged = AutoModelForSequenceClassification.from_pretrained(result.paths["merged"]).eval()
    plan = run.load_plan()
    own = RewardTraining(next_attempt(run))
    own.trainer.load_weights(run.export / "adapter")
    row = open_answers(plan.data.train)[0]
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
    expected = own.headed.model.eval()(ids).logits.item()
    assert merged(ids).logits.item() == pytest.approx(expected, abs=0.02)
