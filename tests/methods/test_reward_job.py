"""Reward models as runs: they tell good from bad, go on where they stopped, load plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support import comparisons
from support.comparisons import pairs, ratings, steps
from support.live_runs import attempt
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, events_of, next_attempt
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from whet.engine.errors import WhetError
from whet.engine.export.of_run import export_run
from whet.engine.methods.preference.trainers import open_answers
from whet.engine.methods.reward.job import RewardTraining
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.events import EvalEvent
from whet.engine.runs.store import RunDir


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "llama")


def recipe(model: Path, folder: Path, rows: list[dict[str, Any]], **sections: dict[str, Any]) -> Recipe:
    return comparisons.recipe(model, folder, rows, **sections, method={"kind": "reward"})


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
