"""The live checks on curves that are made up: what they must say, and what they must not."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from support.plan_inputs import machine, model_facts, recipe, report

from whet.engine.checks.live import Pace, Watch, Watched
from whet.engine.checks.live.watch import gradients
from whet.engine.findings import Finding
from whet.engine.resolve import resolve
from whet.engine.runs.events import EvalEvent, StepEvent

VOCABULARY = 32_000


@pytest.fixture
def run(tmp_path: Any) -> Watched:
    wanted = recipe(training__max_steps=400)
    resolved, _ = resolve(wanted, model_facts(tmp_path / "model"), machine(), report(), 5000)
    resolved = resolved.model_copy(update={"eval_every": 50, "total_steps": 400})
    return Watched(wanted, resolved, VOCABULARY, chats=True)


def step(number: int, loss: float, **values: Any) -> StepEvent:
    whole = {
        "grad_norm": 1.0,
        "tokens": 1000,
        "supervised_tokens": 400,
        "seconds": 0.5,
        "learning_rate": 2e-4,
    }
    return StepEvent(step=number, total_steps=400, epoch=0, loss=loss, memory_bytes=1, **whole | values)


def evaluation(number: int, loss: float) -> EvalEvent:
    return EvalEvent(step=number, loss=loss, supervised_tokens=100, seconds=1.0, best=False)


def noisy(losses: Iterable[float], noise: float = 0.15) -> list[float]:
    draw = random.Random(0)
    return [loss + draw.gauss(0, noise) for loss in losses]


def falling(steps: int = 400, start: float = 1.6, end: float = 0.75) -> list[float]:
    return noisy(end + (start - end) * math.exp(-number / 60) for number in range(steps))


def see(watch: Watch, losses: Sequence[float], evals: dict[int, float] | None = None) -> list[Finding]:
    found = []
    for number, loss in enumerate(losses, 1):
        found += watch.step(step(number, loss))
        if evals and number in evals:
            found += watch.evaluated(evaluation(number, evals[number]))
    return found


def test_a_healthy_run_is_not_spoken_of(run: Watched) -> None:
    evals = {50: 1.2, 100: 1.0, 150: 0.95, 200: 0.93, 250: 0.92, 300: 0.93, 350: 0.925, 400: 0.93}
    assert see(Watch(run), falling(), evals) == []


def test_one_bad_batch_is_no_spike_and_no_divergence(run: Watched) -> None:
    losses = falling()
    losses[200] += 0.9
    assert see(Watch(run), losses) == []


def test_a_spike_needs_the_gradient_to_match_and_is_said_once(run: Watched) -> None:
    watch, losses = Watch(run), falling()
    assert see(watch, losses[:100]) == []
    assert watch.step(step(101, 4.0)) == []
    found = watch.step(step(102, 4.0, grad_norm=40.0))
    assert [f.id for f in found] == ["T01"] and found[0].fix and found[0].fix.patch
    assert found[0].fix.patch["training.learning_rate"] < run.recipe.training.learning_rate
    assert watch.step(step(103, 5.0, grad_norm=40.0)) == []


def test_a_climbing_loss_diverges(run: Watched) -> None:
    losses = falling(100) + [0.9 + number / 10 for number in range(40)]
    found = see(Watch(run), losses)
    assert [(f.id, f.severity) for f in found] == [("T07", "error")]
    assert 105 < found[0].evidence["step"] < 120


def test_a_loss_that_climbs_from_the_first_update_on_diverges_and_does_not_overfit(run: Watched) -> None:
    losses = [0.9, 2.5, 4.5, *noisy([6.9] * 60)]
    watch = Watch(run)
    found = watch.evaluated(evaluation(0, 0.75)) + see(watch, losses, {8: 6.8, 16: 6.9, 24: 6.9, 32: 6.95})
    assert [(f.id, f.severity) for f in found] == [("T07", "error")]
    assert found[0].evidence["step"] == 10 and found[0].evidence["best_median"] == 0.9


def test_a_first_batch_that_was_easy_is_no_divergence(run: Watched) -> None:
    assert see(Watch(run), [0.4, *falling(200, start=1.9, end=0.9)]) == []


@pytest.mark.parametrize(("loss", "said"), [(1.9, True), (0.8, False)])
def test_a_plateau_is_one_above_the_healthy_band(run: Watched, loss: float, said: bool) -> None:
    found = see(Watch(run), noisy([loss] * 200, 0.01))
    assert [f.id for f in found] == (["T07"] if said else [])
    if said:
        assert found[0].fix and found[0].fix.patch == {"adapter.rank": 32, "adapter.alpha": 32.0}


@pytest.mark.parametrize(("fall", "said"), [(0.0, True), (0.5, False)])
def test_a_plateau_shows_through_the_noise_of_uneven_batches(run: Watched, fall: float, said: bool) -> None:
    losses = [4.0 - fall * min(step, 100) / 100 for step in range(200)]
    found = see(Watch(run), noisy(losses, 0.5))
    assert [f.id for f in found] == (["T07"] if said else [])


def test_overfitting_is_two_worse_evaluations_while_training_improves(run: Watched) -> None:
    worse = {50: 1.2, 100: 1.0, 150: 1.05, 200: 1.1, 250: 1.2}
    found = see(Watch(run), falling(end=0.3), worse)
    assert [f.id for f in found] == ["T07"]
    assert found[0].evidence["best_step"] == 100 and found[0].fix
    assert found[0].fix.patch == {"training.max_steps": 100, "eval.early_stopping": 2}
    once = {50: 1.2, 100: 1.0, 150: 1.05, 200: 0.99, 250: 0.99}
    assert see(Watch(run), falling(end=0.3), once) == []


@pytest.mark.parametrize(
    ("loss", "severity"), [(math.log(VOCABULARY) + 2, "error"), (0.1, "warning"), (2.0, None), (10.5, None)]
)
def test_the_first_loss(run: Watched, loss: float, severity: str | None) -> None:
    found = Watch(run).step(step(1, loss))
    assert [f.severity for f in found if f.id == "T04"] == ([severity] if severity else [])
    assert not [f for f in Watch(run).step(step(2, loss)) if f.id == "T04"]


def test_a_resumed_run_knows_what_came_before(run: Watched) -> None:
    losses = falling(100)
    before = [step(number, loss) for number, loss in enumerate(losses, 1)]
    smooth, jump = Watch(run, before), Watch(run, before)
    assert [f for n in (101, 102, 103) for f in smooth.step(step(n, losses[-1] + 0.1))] == []
    found = [f for n in (101, 102, 103) for f in jump.step(step(n, 2.5))]
    assert [f.id for f in found] == ["T05"] and found[0].severity == "error"


def test_what_an_earlier_attempt_said_is_not_said_again(run: Watched) -> None:
    losses = falling(100) + [3.0] * 20
    before = [step(number, loss) for number, loss in enumerate(losses, 1)]
    assert Watch(run, before).step(step(121, 3.0)) == []


def paced(run: Watched, paces: Sequence[tuple[float, Pace]]) -> list[Finding]:
    watch = Watch(run)
    losses = falling(len(paces))
    return [
        finding
        for number, (seconds, pace) in enumerate(paces, 1)
        for finding in watch.step(step(number, losses[number - 1], seconds=seconds), pace)
    ]


def test_waiting_for_rows_is_a_share_and_an_amount(run: Watched) -> None:
    assert [f.id for f in paced(run, [(0.5, Pace(0.3))] * 30)] == ["T09"]
    assert paced(run, [(0.5, Pace(0.1))] * 30) == []
    assert paced(run, [(0.01, Pace(0.008))] * 30) == []
    assert paced(run, [(0.5, Pace(0.3, gpu_busy=0.97))] * 30) == []


def test_steps_that_become_slow_name_the_neighbour(run: Watched) -> None:
    slow = Pace(gpu_busy=0.9, others=())
    found = paced(run, [(0.5, slow)] * 30 + [(1.3, slow)] * 30)
    assert [f.id for f in found] == ["T09"] and found[0].fix and found[0].fix.command == "nvidia-smi"
    shared = paced(run, [(0.5, Pace(others=("python (42)",)))] * 3)
    assert len(shared) == 1 and "python (42)" in shared[0].title


def test_gradients_that_are_missing() -> None:
    assert gradients([], 14) == []
    some, every = gradients(["a.lora_B"], 14)[0], gradients(["a", "b"], 2)[0]
    assert (some.severity, every.severity) == ("warning", "error") and some.id == every.id == "L09"
