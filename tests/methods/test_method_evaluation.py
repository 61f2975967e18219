"""`whet eval` on runs of other methods: the run's own measure of base and tuned, on its rows or others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.live_runs import attempt
from support.tiny_embedders import save_transformer
from support.tiny_runs import create_run, events_of, next_attempt

from whet.engine import api
from whet.engine.errors import WhetError
from whet.engine.methods.classification.job import ClassificationTraining
from whet.engine.methods.jobs import run_job
from whet.engine.recipe import Recipe
from whet.engine.runs.events import EvalEvent
from whet.engine.runs.jobs import EvaluateJob
from whet.engine.runs.store import RunDir, RunStore
from whet.tui.render.outcome import measured_pairs

KINDS = {"animal": ["dog", "cat", "horse", "bird"], "place": ["paris", "rome", "oslo", "vienna"]}
ROWS = [
    {"text": f"{one} {other}", "label": kind}
    for kind, words in KINDS.items()
    for one in words
    for other in words
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small classifier, trained once."""
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHET_HOME", str(folder / "home"))
        recipe = Recipe.model_validate(
            {
                "model": {"name": str(save_transformer(folder / "bert", "bert")), "max_length": 32},
                "data": {"train": write(folder / "rows.jsonl", ROWS), "eval_fraction": 0.3},
                "method": {"kind": "classification"},
                "adapter": {"rank": 8, "alpha": 16},
                "training": {"max_steps": 20, "batch_size": 8, "gradient_accumulation": 1, "threads": 1,
                             "learning_rate": 5e-3, "optimizer": "adamw", "save_every": 50},
                "eval": {"every": 50, "batch_size": 8},
            }
        )  # fmt: skip
        made = create_run(recipe)
        assert attempt(made, method=ClassificationTraining) == "finished"
        made.write_state(status="finished", step=20)
        yield made


def evaluated(run: RunDir, **asked: Any) -> tuple[dict[str, Any], list[EvalEvent]]:
    job = RunStore().create_job(EvaluateJob(parent=run.id, **asked), "test")
    context = next_attempt(job)
    run_job(context)
    return context.summary, [event for event in events_of(job) if isinstance(event, EvalEvent)]


def test_it_measures_what_the_run_measured(run: RunDir) -> None:
    own = [event for event in events_of(run) if isinstance(event, EvalEvent)]
    found, told = evaluated(run)
    assert [event.step for event in told] == [0, 20]
    assert found["tuned_loss"] == pytest.approx(own[-1].loss, rel=1e-5)
    assert found["tuned_accuracy"] == pytest.approx(own[-1].metrics["accuracy"])
    assert found["base_loss"] == pytest.approx(own[0].loss, rel=1e-5)
    assert found["tuned_loss"] < found["base_loss"]
    assert told[-1].metrics == own[-1].metrics
    pairs = measured_pairs(found)
    assert pairs["accuracy"].endswith(f"{own[-1].metrics['accuracy']:.3f}") and "loss" not in pairs


def test_other_rows_are_measured_and_only_the_first_where_asked(run: RunDir, tmp_path: Path) -> None:
    seen = [row for row in ROWS if row["text"].startswith(("dog", "rome"))]
    found, told = evaluated(run, data=write(tmp_path / "other.jsonl", seen))
    assert found["rows"] == len(seen) and told[-1].metrics["accuracy"] == found["tuned_accuracy"]
    fewer, _ = evaluated(run, max_rows=5)
    assert fewer["rows"] == 5


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([{"text": "car lamp", "label": label} for label in ("thing", "animal")], "eval.classes"),
        ([{"text": "car", "labels": ["animal"]}, {"text": "a", "labels": ["place"]}], "eval.layout"),
    ],
)
def test_rows_that_the_run_cannot_judge_are_refused(
    run: RunDir, tmp_path: Path, rows: list[dict[str, Any]], code: str
) -> None:
    with pytest.raises(WhetError) as caught:
        evaluated(run, data=write(tmp_path / "other.jsonl", rows))
    assert caught.value.code == code and caught.value.hint


def test_questions_to_a_model_that_answers_nothing_are_refused_at_once(run: RunDir) -> None:
    with pytest.raises(WhetError, match="answers nothing") as caught:
        api.start_evaluation(run.id, prompts=["Hello?"], started_by="test")
    assert caught.value.code == "eval.prompts"
