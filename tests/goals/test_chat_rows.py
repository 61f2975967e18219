"""From rows to the values of a recipe: passes, held-out rows, lengths, samples, what is mended."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cached_models import cache_models
from support.goal_inputs import MACHINES, SMALL, sound, turns, write_rows
from support.plan_inputs import machine, write_chats
from support.tiny_models import build_tiny_model

from whet.engine.goals import Goal, propose
from whet.engine.goals.rules import held_out_share
from whet.engine.recipe_files import load_recipe


@pytest.mark.parametrize(
    ("rows", "share"), [(20, 0), (149, 0), (150, 0.1), (600, 0.083), (5000, 0.05), (100_000, 0.01)]
)
def test_few_rows_are_held_out_of_few_and_of_many(rows: int, share: float) -> None:
    assert held_out_share(rows) == pytest.approx(share, abs=0.001)


@pytest.mark.parametrize(("rows", "epochs", "accumulation"), [(160, 3, 2), (900, 3, 4), (3000, 2, 4)])
def test_passes_and_steps_follow_the_rows(
    tmp_path: Path, three: Path, rows: int, epochs: float, accumulation: int
) -> None:
    data = write_chats(tmp_path / "rows.jsonl", rows)
    found = propose(Goal(data=str(data), model=SMALL), machine=MACHINES["24 GiB"])
    assert found.recipe.training.epochs == epochs
    assert found.recipe.training.gradient_accumulation == accumulation
    assert found.plan.resolved.total_steps >= 60
    assert found.recipe.eval.early_stopping is not None and found.recipe.data.eval_fraction > 0


def test_a_file_for_evaluation_is_used_instead(tmp_path: Path, tiny: Path, chats: Path) -> None:
    held_out = write_rows(tmp_path / "eval.jsonl", (turns(f"Say {n}.", f"Here: {n}.") for n in range(60)))
    goal = Goal(data=str(chats), eval_data=str(held_out), model=str(tiny))
    found = propose(goal, machine=MACHINES["CPU"])
    sound(found)
    assert found.recipe.data.eval == str(held_out) and found.recipe.data.eval_fraction == 0
    report = found.plan.data.report
    assert report.eval is not None and report.eval.rows == 60 and report.train.rows == 1200


def test_the_training_file_for_evaluation_is_mended(tiny: Path, chats: Path) -> None:
    goal = Goal(data=str(chats), eval_data=str(chats), model=str(tiny))
    found = propose(goal, machine=MACHINES["CPU"])
    assert found.recipe.data.eval is None and found.recipe.data.eval_fraction > 0
    assert any("held-out rows are trained on" in line for line in found.changed)


def test_samples_are_questions_of_the_data(tiny: Path, chats: Path) -> None:
    found = propose(Goal(data=str(chats), model=str(tiny)), machine=MACHINES["CPU"])
    assert found.recipe.sampling.prompts == [f"What is {n} plus {n + 1}?" for n in range(3)]


def test_alpaca_rows(tmp_path: Path, tiny: Path) -> None:
    rows = ({"instruction": f"Count to {n}.", "input": "", "output": f"{n}!"} for n in range(400))
    found = propose(
        Goal(data=str(write_rows(tmp_path / "a.jsonl", rows)), model=str(tiny)), machine=machine()
    )
    sound(found)
    assert found.recipe.sampling.prompts[0] == "Count to 0."


def test_columns_of_unknown_names_are_named_in_the_recipe(tmp_path: Path, tiny: Path) -> None:
    rows = ({"question": f"How much is {n}?", "answer": f"It is {n}."} for n in range(400))
    found = propose(
        Goal(data=str(write_rows(tmp_path / "q.jsonl", rows)), model=str(tiny)), machine=machine()
    )
    assert found.plan.blocked() == []
    assert found.recipe.data.format == "prompt_completion"
    assert found.recipe.data.columns == {"prompt": "question", "completion": "answer"}
    assert found.reasons["data.format"].startswith("D15") and found.recipe.sampling.prompts


def test_plain_text_takes_the_values_for_text(tmp_path: Path, bare: Path) -> None:
    cache_models(bare, [SMALL, "Qwen/Qwen3-0.6B-Base"])
    rows = (
        {"text": f"Chapter {n}. " + "It was a dark and stormy night, and it rained. " * 20}
        for n in range(300)
    )
    data = write_rows(tmp_path / "texts.jsonl", rows)
    found = propose(Goal(data=str(data)), machine=MACHINES["24 GiB"])
    sound(found)
    like = load_recipe("continued-pretraining")
    assert found.recipe.model.name in (SMALL, "Qwen/Qwen3-0.6B-Base")
    assert found.recipe.method.supervise == "all" and found.recipe.method.packing
    assert found.recipe.training.learning_rate == like.training.learning_rate
    assert found.recipe.adapter.train_embeddings and like.adapter.train_embeddings
    assert found.plan.resolved.embedding_learning_rate == like.training.embedding_learning_rate
    assert found.recipe.sampling.prompts == []
    light = propose(Goal(data=str(data), priority="memory"), machine=MACHINES["24 GiB"])
    assert not light.recipe.adapter.train_embeddings


def test_long_rows_are_kept_up_to_the_99th_percentile(tmp_path: Path, three: Path) -> None:
    rows = [turns(f"Tell me of {n}.", f"word{n} " * (1500 if n % 20 == 0 else 20)) for n in range(400)]
    found = propose(
        Goal(data=str(write_rows(tmp_path / "long.jsonl", rows)), model=SMALL), machine=MACHINES["24 GiB"]
    )
    lengths = found.plan.data.report.train.length
    assert lengths.p99 > 2048
    assert lengths.p99 <= found.recipe.model.max_length < lengths.p99 + 256
    assert found.plan.memory.fits


def test_a_model_of_few_positions_limits_the_length(tmp_path: Path, tiny: Path) -> None:
    rows = [turns(f"Tell me of {n}.", f"word{n} " * (400 if n == 7 else 5)) for n in range(400)]
    data = write_rows(tmp_path / "long.jsonl", rows)
    found = propose(Goal(data=str(data), model=str(tiny)), machine=machine())
    assert found.recipe.model.max_length == 512 and "512 positions" in found.reasons["model.max_length"]


def test_bad_data_are_mended_and_what_remains_is_said(tmp_path: Path, three: Path) -> None:
    rows = [turns(f"Say {n}.", f"Well: {n}.") for n in range(300)]
    rows += [turns(f"Say nothing of {n}.", "") for n in range(30)] + rows[:60]
    data = tmp_path / "bad.jsonl"
    write_rows(data, rows)
    data.write_text(data.read_text() + "{broken\n")
    found = propose(Goal(data=str(data), model=SMALL), machine=MACHINES["24 GiB"])
    assert found.plan.blocked() == []
    assert found.recipe.data.bad_rows == "skip"
    assert {"duplicates", "empty"} <= set(found.recipe.data.drop)
    report = found.plan.data.report
    assert f"{report.train.token_rows:,} rows" in found.reasons["training.epochs"]
    assert report.train.duplicates == report.train.empty_replies == 0
    assert any("repeat an earlier row" in line for line in found.changed)
    assert found.reasons["data.drop"].startswith("D")


def test_too_few_rows_stay_an_error(tmp_path: Path, tiny: Path) -> None:
    data = write_chats(tmp_path / "few.jsonl", 20)
    found = propose(Goal(data=str(data), model=str(tiny)), machine=machine())
    assert [finding.id for finding in found.plan.blocked()] == ["D16"] and found.recipe.accept == []
    assert any(line.startswith("D16") for line in found.unmet)
    assert found.recipe.data.eval_fraction == 0


def test_a_base_model_gets_a_template(tmp_path: Path, chats: Path) -> None:
    base = build_tiny_model(tmp_path / "base", "llama", chat=False)
    found = propose(Goal(data=str(chats), model=str(base)), machine=machine())
    assert found.plan.blocked() == []
    assert found.recipe.data.template == found.plan.resolved.template is not None
    assert found.reasons["data.template"].startswith("D09")
