"""Trains in one process or several, as often as it is told. A process of its own; prints what each saw.

    python -P rank_driver.py  < {"job": "sft", "runs": {name: {"recipe": {...}, "attempts": [{...}]}}}

An attempt is ``{"ranks": 2}``, with ``"stop": 3`` to be asked to stop after that step. Ranks are forks of
this process, which pays for the imports once; they meet over gloo on the loopback, and none outlives
``LIMIT`` seconds.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import socket
import sys
import time
from contextlib import closing
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
    """Somebody asks for a stop after a step."""

    after: int | None = None

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, StepEvent) and event.step == self.after:
            self.signals += 1


def plan_for(plan: Plan, ranks: int) -> Plan:
    """The plan of one process, its step shared out."""
    resolved = plan.resolved
    share = StepRows(resolved.batch_size, resolved.gradient_accumulation).share(ranks)
    assert share is not None
    changed = {"ranks": ranks, "batch_size": share[0], "gradient_accumulation": share[1]}
    return plan.model_copy(update={"resolved": resolved.model_copy(update=changed)})


def rank_main(run: RunDir, kind: str, place: Topology, port: int, stop: int | None) -> None:
    from whet.engine.methods import training

    if not place.alone:
        os.environ.update(place.variables(LOOPBACK, port))
    context: RunContext
    if place.is_main:
        opened = next_attempt(run)
        context = watched = StoppingContext(run, opened.attempt, opened._events)
        watched.after = stop
    else:
        context = PeerContext(run)
    context.plan = plan_for(run.load_plan(), place.world_size)
    try:
        training.train(context, training_of(kind))
    except Stopped:
        if stop is None:
            raise


def training_of(kind: str) -> Any:
    """The class of a method's training."""
    module = import_module(f"whet.engine.methods{METHODS[kind][0]}")
    named = {name: value for name, value in vars(module).items() if name.endswith("Training")}
    return next(value for value in named.values() if value.__module__ == module.__name__)


def attempt(run: RunDir, kind: str, ranks: int, stop: int | None = None) -> list[int | None]:
    """Exit codes of all ranks."""
    with closing(socket.socket()) as found:
        found.bind((LOOPBACK, 0))
        port = found.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    places = [Topology(rank, rank, ranks) for rank in range(ranks)]
    children = [fork.Process(target=rank_main, args=(run, kind, place, port, stop)) for place in places]
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
        "weights": [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(weights)],
        "checkpoints": sorted(path.name for path in Path(run.checkpoints).iterdir()),
        "summary": run.read_state().summary,
    }


def main() -> None:
    job = json.load(sys.stdin)
    kind = job["job"]
    training_of(kind)  # its imports are paid for once, before the forks
    report: dict[str, Any] = {}
    for name, wanted in job["runs"].items():
        run = create_run(Recipe.model_validate(wanted["recipe"]))
        codes = [attempt(run, kind, one["ranks"], one.get("stop")) for one in wanted["attempts"]]
        report[name] = {"codes": codes, **outcome(run)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
