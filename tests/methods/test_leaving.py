"""A machine that is taken away gives 30 seconds: a stop waits neither for an evaluation nor for a long step,
and what is left undone is made good by the resume, which has the numbers of a run that nobody stopped."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, events_of, next_attempt, tiny_recipe, write_chat_rows

from whet.engine.methods import callbacks
from whet.engine.methods.sft.fast_step import FastStep
from whet.engine.methods.sft.job import train
from whet.engine.recipe import Recipe
from whet.engine.runs.context import RunContext, Stopped
from whet.engine.runs.control import StopRequest
from whet.engine.runs.events import EvalEvent, Event, PhaseEvent, SampleEvent, StepEvent
from whet.engine.runs.store import RunDir


class Preempted(RunContext):
    """Is asked to stop after so many looks for such a request, counted from an event on."""

    event: str
    looks: int
    seen = False

    @classmethod
    def at(cls, run: RunDir, event: str, looks: int = 0) -> Preempted:
        opened = next_attempt(run)
        context = cls(run, opened.attempt, opened._events)
        context.event, context.looks = event, looks
        return context

    def emit(self, event: Event) -> None:
        super().emit(event)
        said = event.detail if isinstance(event, PhaseEvent) else getattr(event, "step", "")
        self.seen = self.seen or f"{event.type} {said}" == self.event

    def stop_requested(self) -> StopRequest | None:
        if not self.seen:
            return None
        self.looks -= 1
        return "checkpoint" if self.looks < 0 else None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def recipe(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Six steps with dropout, evaluated at 3 and 6; only the best is saved before the last step."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    rows = write_chat_rows(tmp_path / "rows.jsonl", 24)
    held_out = write_chat_rows(tmp_path / "held_out.jsonl", 6, seed=1)
    return tiny_recipe(
        model,
        rows,
        data={"eval": str(held_out)},
        training={"save_every": 100},
        eval={"every": 3},
        sampling={"prompts": ["what is a token?", "and a row?"], "max_new_tokens": 2},
    )


def numbers(run: RunDir) -> list[Any]:
    events = [event for event in events_of(run) if isinstance(event, StepEvent | EvalEvent)]
    return sorted((event.type, event.step, event.loss) for event in events)


def checkpoints(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def stopped_and_resumed(recipe: Recipe, event: str, looks: int, left: list[str]) -> RunDir:
    run, whole = create_run(recipe), create_run(recipe)
    with pytest.raises(Stopped):
        train(Preempted.at(run, event, looks))
    assert checkpoints(run) == left
    train(next_attempt(run))
    train(next_attempt(whole))
    assert numbers(run) == numbers(whole)
    return run


def test_evaluation_is_left_and_made_up_for(recipe: Recipe) -> None:
    run = stopped_and_resumed(recipe, "phase step 3", 0, ["step-000003"])
    at = [
        f"{event.type} {event.step}" for event in events_of(run) if isinstance(event, StepEvent | EvalEvent)
    ]
    assert at.index("step 3") < at.index("eval 3") < at.index("step 4")


def test_last_evaluation_is_left_and_made_up_for(recipe: Recipe) -> None:
    run = stopped_and_resumed(recipe, "phase step 6", 0, ["step-000003", "step-000006"])
    evaluated = [event.loss for event in events_of(run) if isinstance(event, EvalEvent)]
    assert run.read_state().summary["eval_loss"] == evaluated[-1]


def test_first_evaluation_is_left_with_nothing_to_save(recipe: Recipe) -> None:
    stopped_and_resumed(recipe, "phase step 0", 0, [])


def test_long_step_is_left_as_the_one_before_it_was(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks end step 4; the next is after the first of the two micro-batches of step 5."""
    monkeypatch.setattr(callbacks, "STEP_PATIENCE", 0.0)
    monkeypatch.setattr("whet.engine.methods.sft.trainer.plain_reason", partial(_said, "a loss of its own"))
    run = stopped_and_resumed(recipe, "step 4", 2, ["step-000003", "step-000004"])
    assert [event.step for event in events_of(run) if isinstance(event, StepEvent)] == [1, 2, 3, 4, 5, 6]


def test_long_step_on_the_fast_path_is_left_between_its_micro_batches(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two looks end step 4, two see the first rows of step 5 wait for the others; its four rows go through
    one by one."""
    monkeypatch.setattr(callbacks, "STEP_PATIENCE", 0.0)
    monkeypatch.setattr("whet.engine.methods.sft.job.follow", _one_row_at_a_time)
    run = stopped_and_resumed(recipe, "step 4", 5, ["step-000003", "step-000004"])
    assert [event.step for event in events_of(run) if isinstance(event, StepEvent)] == [1, 2, 3, 4, 5, 6]


def _one_row_at_a_time(fast: FastStep, _schedule: Any) -> None:
    fast.budget = 1


def _said(reason: str, *_: Any) -> str:
    return reason


def test_step_that_ends_in_time_is_not_left(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.engine.methods.sft.trainer.plain_reason", partial(_said, "a loss of its own"))
    stopped_and_resumed(recipe, "step 4", 2, ["step-000003", "step-000005"])


@pytest.mark.parametrize(("between", "left"), [(12.0, 1), (4.0, 3)])
def test_patience_begins_when_the_request_can_have_come(
    monkeypatch: pytest.MonkeyPatch, between: float, left: int
) -> None:
    """During the first micro-batch; a step of long ones is not waited for a whole one more."""
    now, asked = 0.0, False

    class Asked:
        def stop_requested(self) -> str | None:
            return "checkpoint" if asked else None

        def take_checkpoint_request(self) -> bool:
            return False

    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now)
    schedule = callbacks.Schedule(Asked(), save_every=9, eval_every=None, save=pytest.fail)
    arguments: Any = (None, None, None)
    schedule.on_step_begin(*arguments)
    asked = True
    for _ in range(left - 1):
        now += between
        schedule.on_substep_end(*arguments)
    now += between
    with pytest.raises(Stopped):
        schedule.on_substep_end(*arguments)


def test_samples_are_left(recipe: Recipe) -> None:
    run = create_run(recipe)
    with pytest.raises(Stopped):
        train(Preempted.at(run, "sample 3"))
    shown = [event.step for event in events_of(run) if isinstance(event, SampleEvent)]
    assert shown == [0, 0, 3] and checkpoints(run) == ["step-000003", "step-000004"]
