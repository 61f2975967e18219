"""Trains in one process or several, as often as it is told. A process of its own; prints what each saw.

    python -P rank_driver.py  < {name: {"recipe": {...}, "attempts": [{...}]}}

An attempt is ``{"ranks": 2}``, with ``"stop": 3`` to be asked to stop after that step or
``"stop_evaluating": 3`` in the evaluation after it, ``"stop_sampling": 3`` when that one's first prompt was
answered, and ``"strategy": "fsdp"`` for what no plan chooses on a CPU. Ranks are forks of this process, which
pays for the imports once, unless one of those has touched a GPU; they meet on the loopback, and none outlives
``LIMIT`` seconds.
"""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import os
import socket
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from support.tiny_runs import create_run, events_of, next_attempt

from whet.engine.methods.jobs import METHODS
from whet.engine.parallel.strategy import StepRows
from whet.engine.parallel.topology import LOOPBACK, Topology
from whet.engine.plan import Plan
from whet.engine.recipe import Recipe
from whet.engine.runs.context import RunContext, Stopped
from whet.engine.runs.events import EvalEvent, Event, PhaseEvent, SampleEvent, StepEvent, last_attempt
from whet.engine.runs.peer_context import PeerContext
from whet.engine.runs.store import RunDir

LIMIT = 60.0


class StoppingContext(RunContext):
    """Somebody asks for a stop after a step, or when the evaluation after one has begun."""

    after: int | None = None
    evaluating: int | None = None
    sampling: int | None = None

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, StepEvent):
            self.signals += event.step == self.after
        if isinstance(event, SampleEvent):
            self.signals += event.step == self.sampling
        if isinstance(event, PhaseEvent) and event.phase == "eval":
            self.signals += event.detail == f"step {self.evaluating}"


@dataclass(frozen=True)
class Attempt:
    ranks: int
    stop: int | None = None
    stop_evaluating: int | None = None
    stop_sampling: int | None = None
    strategy: str = "ddp"


def plan_for(plan: Plan, wanted: Attempt) -> Plan:
    """The plan of one process, its step shared out."""
    resolved = plan.resolved
    share = StepRows(resolved.batch_size, resolved.gradient_accumulation).share(wanted.ranks)
    assert share is not None
    changed: dict[str, Any] = {"batch_size": share[0], "gradient_accumulation": share[1]}
    if wanted.ranks > 1:
        changed |= {"ranks": wanted.ranks, "strategy": wanted.strategy}
    return plan.model_copy(update={"resolved": resolved.model_copy(update=changed)})


def rank_main(run: RunDir, method: Any, place: Topology, port: int, wanted: Attempt) -> None:
    from whet.engine.methods import training

    if not place.alone:
        os.environ.update(place.variables(LOOPBACK, port))
    context: RunContext
    if place.is_main:
        opened = next_attempt(run)
        context = watched = StoppingContext(run, opened.attempt, opened._events)
        watched.after, watched.evaluating = wanted.stop, wanted.stop_evaluating
        watched.sampling = wanted.stop_sampling
    else:
        context = PeerContext(run)
    context.plan = plan_for(run.load_plan(), wanted)
    try:
        training.train(context, method)
    except Stopped:
        if (wanted.stop, wanted.stop_evaluating, wanted.stop_sampling) == (None, None, None):
            raise


def training_of(kind: str) -> Any:
    """What makes a method's training out of a context."""
    module = import_module(f"whet.engine.methods{METHODS[kind][0]}")
    if kind == "tts":  # how the model writes codes decides
        return lambda context: module.kind_of_training(context)(context)
    named = {name: value for name, value in vars(module).items() if name.endswith("Training")}
    return [value for value in named.values() if value.__module__ == module.__name__][-1]


def _touch_gpu() -> None:
    import torch

    torch.cuda.init()


@cache
def processes() -> Any:
    """How ranks are started. A fork of a process that has asked CUDA for anything cannot use it."""
    import torch

    fork = multiprocessing.get_context("fork")
    if not torch.cuda.is_available():
        return fork
    child = fork.Process(target=_touch_gpu)
    child.start()
    child.join(LIMIT)
    return fork if child.exitcode == 0 else multiprocessing.get_context("spawn")


def attempt(run: RunDir, method: Any, wanted: Attempt) -> list[int | None]:
    """Exit codes of all ranks."""
    with closing(socket.socket()) as found:
        found.bind((LOOPBACK, 0))
        port = found.getsockname()[1]
    places = [Topology(rank, rank, wanted.ranks) for rank in range(wanted.ranks)]
    children = [
        processes().Process(target=rank_main, args=(run, method, place, port, wanted)) for place in places
    ]
    ends = time.monotonic() + LIMIT
    try:
        for child in children:
            child.start()
        for child in children:
            child.join(max(0.0, ends - time.monotonic()))
        return [child.exitcode for child in children]
    finally:
        for child in children:
            child.kill()
            child.join(5.0)


def outcome(run: RunDir) -> dict[str, Any]:
    events = list(last_attempt(events_of(run)))
    weights = [*run.export.glob("*/*.safetensors")]
    return {
        "steps": [
            [e.step, e.loss, e.grad_norm, e.tokens, e.supervised_tokens]
            for e in events
            if isinstance(e, StepEvent)
        ],
        "evals": [
            [e.step, e.loss, e.supervised_tokens, e.metrics] for e in events if isinstance(e, EvalEvent)
        ],
        "samples": sum(isinstance(e, SampleEvent) for e in events),
        "said": [e.detail for e in events if isinstance(e, PhaseEvent)],
        "export": str(run.export),
        "weights": [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(weights)],
        "checkpoints": sorted(path.name for path in Path(run.checkpoints).iterdir()),
        "summary": run.read_state().summary,
    }


def main() -> None:
    wanted = json.load(sys.stdin)
    recipes = {name: Recipe.model_validate(one["recipe"]) for name, one in wanted.items()}
    kinds = {recipe.method.kind: training_of(recipe.method.kind) for recipe in recipes.values()}
    # A training collects garbage more than once; the imports' objects are most of what each fork would walk.
    gc.collect()
    gc.freeze()
    report: dict[str, Any] = {}
    for name, recipe in recipes.items():
        run = create_run(recipe)
        method = kinds[recipe.method.kind]  # its imports are paid for once, before the forks
        codes = [attempt(run, method, Attempt(**one)) for one in wanted[name]["attempts"]]
        report[name] = {"codes": codes, **outcome(run)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
