"""Kills training at chosen points and resumes it. A process of its own; prints what each run saw as JSON.

    python -P kill_driver.py FOLDER  < {"recipe": {...}, "kills": {name: [kind, text, count]}}

A kill point is an event of the run (``step:3``) or an audit event of the interpreter while a checkpoint is
written or rotated: the process kills itself with SIGKILL at the ``count``-th time ``text`` is in it. Training
happens in forks of this process, so that the imports are paid for once.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.tiny_runs import create_run, events_of, next_attempt

from whet.engine.recipe import Recipe
from whet.engine.runs.context import RunContext
from whet.engine.runs.events import CheckpointEvent, EvalEvent, Event, StepEvent, last_attempt
from whet.engine.runs.store import RunDir


class Trigger:
    """Kills this process at the count-th sight of a text."""

    def __init__(self, kind: str, text: str, count: int) -> None:
        self.kind, self.text, self.left = kind, text, count

    def see(self, kind: str, text: str) -> None:
        if kind == self.kind and self.text in text:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == self.kind:
            self.see(name, " ".join(map(str, arguments)))


class WatchedContext(RunContext):
    """Shows every event to a trigger, after it was written."""

    trigger: Trigger

    def emit(self, event: Event) -> None:
        super().emit(event)
        step = event.step if isinstance(event, StepEvent | EvalEvent | CheckpointEvent) else ""
        self.trigger.see("event", f"{event.type}:{step}.")


def in_fork(work: Callable[[], object]) -> int:
    """Run ``work`` in a child; its wait status (a signal's number when it was killed)."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]


def train_once(run: RunDir, trigger: Trigger | None = None) -> None:
    from whet.engine.methods.sft.job import train

    context = next_attempt(run)
    if trigger is not None:
        watched = WatchedContext(run, context.attempt, context._events)
        watched.trigger = trigger
        sys.addaudithook(trigger.audit)
        context = watched
    train(context)


def outcome(run: RunDir) -> dict[str, Any]:
    events = list(last_attempt(events_of(run)))
    weights = run.export / "adapter" / "adapter_model.safetensors"
    return {
        "losses": [
            (e.step, e.loss, e.grad_norm, e.learning_rate) for e in events if isinstance(e, StepEvent)
        ],
        "evals": [(e.step, e.loss) for e in events if isinstance(e, EvalEvent)],
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else None,
        "checkpoints": sorted(path.name for path in run.checkpoints.iterdir()),
    }


def main() -> None:
    job = json.load(sys.stdin)
    recipe = Recipe.model_validate(job["recipe"])
    reference = create_run(recipe)
    runs = {name: create_run(recipe) for name in job["kills"]}

    import whet.engine.methods.sft.job  # noqa: F401  (paid for once, before the forks)

    report: dict[str, Any] = {"reference": {"status": in_fork(lambda: train_once(reference))}}
    report["reference"] |= outcome(reference)
    for name, kill in job["kills"].items():
        run = runs[name]
        killed = in_fork(lambda run=run, kill=kill: train_once(run, Trigger(*kill)))  # type: ignore[misc]
        left = sorted(path.name for path in Path(run.checkpoints).iterdir())
        resumed = in_fork(lambda run=run: train_once(run))  # type: ignore[misc]
        report[name] = {"killed": killed, "left": left, "resumed": resumed, **outcome(run)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
