"""Trains in one process or several, as often as it is told. A process of its own; prints what each saw.

    python -P rank_driver.py [--prepared] < {name: {"recipe": {...}, "attempts": [{...}]}}

An attempt is ``{"ranks": 2}``, with ``"stop": 3`` to be asked to stop after that step or
``"stop_evaluating": 3`` in the evaluation after it, ``"stop_sampling": 3`` when that one's first prompt was
answered, and ``"strategy": "fsdp"`` for what no plan chooses on a CPU. Ranks meet on the loopback, and none
outlives the driver or ``LIMIT`` seconds; where one hangs, its stack is on stderr, beside the progress.

On a CPU ranks are forks of this process, which pays for the imports once. No fork of a process that has asked
CUDA for anything can use it, and bitsandbytes asks each GPU for its capability when it is imported; so on
GPUs (or ``--prepared``) the ranks of all attempts are started at once, import side by side, and wait for
their turn.
"""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from support.tiny_runs import create_run, events_of, next_attempt

from whet.engine.hardware import inspect_machine
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
PREPARED_LIMIT = 150.0
"""Of ranks on GPUs: the first attempt waits for the imports, each for CUDA, NCCL and kernels to be made."""
BEGAN = time.monotonic()


def say(text: str) -> None:
    """Progress, for whoever wonders where it hangs."""
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", file=sys.stderr, flush=True)


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


def _leave_with_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)


def rank_main(run: RunDir, method: Any, place: Topology, port: int, wanted: Attempt, limit: float) -> None:
    from whet.engine.methods import training

    faulthandler.dump_traceback_later(0.8 * limit)
    threading.Thread(target=_leave_with_driver, daemon=True).start()
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


class Forks:
    """Ranks that begin as copies of this process."""

    limit = LIMIT

    def __init__(self, kinds: set[str]) -> None:
        self.methods = {
            kind: training_of(kind) for kind in kinds
        }  # their imports are paid for before the forks
        # A training collects garbage more than once; the imports' objects are most of what each would walk.
        gc.collect()
        gc.freeze()

    def start(
        self, run: RunDir, kind: str, places: list[Topology], port: int, wanted: Attempt
    ) -> list[BaseProcess]:
        fork = multiprocessing.get_context("fork")
        ranks: list[BaseProcess] = [
            fork.Process(target=rank_main, args=(run, self.methods[kind], place, port, wanted, self.limit))
            for place in places
        ]
        for rank in ranks:
            rank.start()
        return ranks


def prepared_rank(orders: Connection, kind: str, number: int, alone: bool) -> None:
    began = time.monotonic()
    if alone:  # a run's worker sees the GPUs that were given to it
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    method = training_of(kind)
    import_module("whet.engine.methods.training")
    say(f"process {number} is ready for {kind}, {time.monotonic() - began:.1f} s of imports")
    run, *told = orders.recv()
    rank_main(run, method, *told)


class Prepared:
    """Ranks of all attempts, imported and waiting. Each does one attempt: nothing is left over from another.

    Args:
        kinds: of each attempt's method, with its number of ranks, in their order.
    """

    limit = PREPARED_LIMIT

    def __init__(self, kinds: Sequence[tuple[str, int]]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.waiting: list[tuple[Any, BaseProcess]] = []
        for kind, alone in ((kind, ranks == 1) for kind, ranks in kinds for _ in range(ranks)):
            reader, writer = spawn.Pipe(duplex=False)
            order = (reader, kind, len(self.waiting), alone)
            rank = spawn.Process(target=prepared_rank, args=order, daemon=True)
            rank.start()
            reader.close()
            self.waiting.append((writer, rank))

    def start(
        self, run: RunDir, kind: str, places: list[Topology], port: int, wanted: Attempt
    ) -> list[BaseProcess]:
        ranks = []
        for place in places:
            orders, rank = self.waiting.pop(0)
            orders.send((run, place, port, wanted, self.limit))
            ranks.append(rank)
        return ranks


def attempt(ranks: Forks | Prepared, run: RunDir, kind: str, wanted: Attempt) -> list[int | None]:
    """Exit codes of all ranks."""
    with closing(socket.socket()) as found:
        found.bind((LOOPBACK, 0))
        port = found.getsockname()[1]
    places = [Topology(rank, rank, wanted.ranks) for rank in range(wanted.ranks)]
    ends = time.monotonic() + ranks.limit
    children = ranks.start(run, kind, places, port, wanted)
    try:
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
    attempts = {name: [Attempt(**told) for told in one["attempts"]] for name, one in wanted.items()}
    ranks: Forks | Prepared
    if "--prepared" in sys.argv or inspect_machine().gpus:
        each = [(recipes[name].method.kind, one.ranks) for name, some in attempts.items() for one in some]
        ranks = Prepared(each)
    else:
        ranks = Forks({recipe.method.kind for recipe in recipes.values()})
    report: dict[str, Any] = {}
    for name, recipe in recipes.items():
        run, codes = create_run(recipe), []
        for one in attempts[name]:
            say(f"{name}: {one}")
            codes.append(attempt(ranks, run, recipe.method.kind, one))
            say(f"{name}: exit codes {codes[-1]}")
        report[name] = {"codes": codes, **outcome(run)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
