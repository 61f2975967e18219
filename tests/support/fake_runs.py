"""Runs with light jobs: a plan with nothing but a recipe, and a worker script around any job's body."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from whet.engine.recipe import Recipe

SOURCE = Path(__file__).parents[2] / "src"

SCRIPT = """
import errno, json, os, signal, sys, time
from pathlib import Path
from whet.engine.errors import WhetError
from whet.engine.runs import worker
from whet.engine.runs.context import Stopped
from whet.engine.runs.events import CheckpointEvent, EvalEvent, PhaseEvent, StepEvent

worker.GRACE_SECONDS = 0.3

def step(context, number, loss=1.0):
    context.emit(StepEvent(step=number, total_steps=9, epoch=0.1, loss=loss, learning_rate=1e-3,
                           grad_norm=1.0, tokens=8, supervised_tokens=4, seconds=0.1, memory_bytes=1))

def train_until_stopped(context):
    number = 0
    while not context.stop_requested():
        number += 1
        step(context, number)
        time.sleep(0.01)
    return number

def job(context):
{body}

if __name__ == "__main__":
    sys.exit(worker.main(job=job, choose_gpus=lambda context: {gpus!r},
                         count_ranks=lambda context: {ranks}, peer=(__file__,)))
"""


class FakePlan(BaseModel):
    """As much of a plan as the store needs."""

    recipe: Recipe


def make_recipe(name: str = "fake") -> Recipe:
    return Recipe.model_validate({"name": name, "model": {"name": "demo"}, "data": {"train": "demo"}})


T = TypeVar("T")


def until(probe: Callable[[], T], what: str = "the condition", seconds: float = 20.0) -> T:
    """Poll ``probe`` until it returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (value := probe()):
        assert time.monotonic() < deadline, f"{what} did not come about in {seconds} s"
        time.sleep(0.01)
    return value


def write_job(folder: Path, body: str, gpus: tuple[str, ...] = (), ranks: int = 1) -> tuple[str]:
    """Write a worker whose job, in each of its ranks, has the given body; returns what the interpreter is to
    run."""
    path = folder / f"job-{time.monotonic_ns()}.py"
    path.write_text(
        SCRIPT.format(body=textwrap.indent(textwrap.dedent(body).strip(), "    "), gpus=gpus, ranks=ranks)
    )
    return (str(path),)
