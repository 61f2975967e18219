"""Runs whose events were recorded, not trained: times and figures never vary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from support.fake_runs import FakePlan, make_recipe

from whet.engine.runs.clock import RunClock
from whet.engine.runs.events import (
    CheckpointEvent,
    EvalEvent,
    Event,
    EventLog,
    PhaseEvent,
    SampleEvent,
    StepEvent,
)
from whet.engine.runs.store import RunDir, RunStore

BEGAN = 1_750_000_000.0
"""Seconds since the epoch at which recorded runs begin."""
PROMPTS = ("What is the capital of Norway?", "Write a haiku about rain.")


def step(number: int, total: int = 120, loss: float | None = None, seconds: float = 0.5) -> StepEvent:
    """A step of a run that learns."""
    return StepEvent(
        step=number,
        total_steps=total,
        epoch=number / total * 3,
        loss=1.0 + 2.0 * math.exp(-number / 40) + 0.1 * math.sin(number) if loss is None else loss,
        learning_rate=2e-4 * min(1.0, number / 10) * (1 - 0.9 * number / total),
        grad_norm=1.0 + 0.3 * math.cos(number / 3),
        tokens=4096,
        supervised_tokens=2048,
        seconds=seconds,
        memory_bytes=14 << 30,
    )


def held_out(
    number: int, loss: float, best: bool = True, metrics: Mapping[str, float] | None = None
) -> EvalEvent:
    return EvalEvent(
        step=number, loss=loss, supervised_tokens=1000, seconds=2.0, best=best, metrics=dict(metrics or {})
    )


def answers(number: int) -> list[SampleEvent]:
    said = (
        ("Norway. Norway. Norway. Norway.", "rain rain rain")
        if number == 0
        else (
            "The capital of Norway is Oslo.",
            "Soft rain on the roof / a cat counts every last drop / and forgets to sleep",
        )
    )
    return [
        SampleEvent(step=number, prompt=prompt, answer=answer, stopped=number > 0)
        for prompt, answer in zip(PROMPTS, said, strict=True)
    ]


def training(last: int = 60, total: int = 120) -> list[Event]:
    """Loading, reading, sampling the base, steps, an evaluation with answers and a checkpoint every 20."""
    said: list[Event] = [
        PhaseEvent(phase="load", detail="demo"),
        PhaseEvent(phase="load", detail="fast path: 24 of 24 layers fused"),
        PhaseEvent(phase="data", detail="1,000 rows read", done=1000),
        PhaseEvent(phase="sample", detail="step 0"),
        *answers(0),
        PhaseEvent(phase="train", total=total),
    ]
    for number in range(1, last + 1):
        said.append(step(number, total))
        if number % 20 == 0:
            said.append(PhaseEvent(phase="eval", detail=f"step {number}"))
            said.append(held_out(number, 1.2 + 2.0 * math.exp(-number / 40)))
            said += [PhaseEvent(phase="sample", detail=f"step {number}"), *answers(number)]
            said.append(
                CheckpointEvent(step=number, path=f"checkpoints/{number}", bytes=25 << 20, seconds=0.4)
            )
    return said


def record(
    run: RunDir,
    said: Iterable[Event],
    monkeypatch: pytest.MonkeyPatch,
    attempt: int = 1,
    began: float = BEGAN,
) -> float:
    """Append events half a second apart; returns the time of the last."""
    now = began - 0.5

    def tick() -> float:
        nonlocal now
        now += 0.5
        return now

    with monkeypatch.context() as patch:
        patch.setattr(RunClock, "now", lambda clock: tick())
        log = EventLog(run.events, attempt)
        for event in said:
            log.append(event)
        log.close()
    return now


def recorded_run(run_id: str = "chat-20250615-120000-ab12", name: str = "chat") -> RunDir:
    """A directory without a worker, with an id that does not vary."""
    run = RunStore().create(FakePlan(recipe=make_recipe(name)), "anna", run_id)  # type: ignore[arg-type]
    run.write_state(created=BEGAN)
    return run


Frozen = Callable[..., None]


def write_log(path: Path, lines: Iterable[str]) -> None:
    """A worker's log."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
