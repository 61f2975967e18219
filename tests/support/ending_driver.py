"""Real training in a real worker that meets a mishap, and then is resumed. Prints what was left as JSON.

    python -P ending_driver.py < {"recipe": {...}, "mishaps": {"crash": {"save_every": 2}, ...}}

A mishap may need training settings of its own.

Each worker is a fork of this process, so that the imports are paid for once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from support.kill_driver import in_fork
from support.tiny_runs import create_run, events_of

from whet.engine.methods.checkpoints import list_complete
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched
from whet.engine.runs import worker
from whet.engine.runs.context import RunContext
from whet.engine.runs.events import CheckpointEvent, Event, StepEvent, last_attempt
from whet.engine.runs.store import RunDir
from whet.engine.runs.worker import training_job

LEFT_BYTES = 48 << 10
"""Free space after the disk was filled: enough for some events, too little for a checkpoint."""


class Unlucky(RunContext):
    """Meets a mishap at its moment: after the first checkpoint, or one step later."""

    mishap: str

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, CheckpointEvent) and self.mishap == "disk full":
            fill_disk(self.dir.path.parent / "neighbour")
        if isinstance(event, StepEvent) and event.step == 3 and self.mishap == "crash":
            os.kill(os.getpid(), signal.SIGKILL)


def fill_disk(file: Path) -> None:
    """Write until the disk is full, then give a little back."""
    if not file.exists():
        free = shutil.disk_usage(file.parent).free
        file.write_bytes(b"x" * max(0, free - LEFT_BYTES))


def attempt(run: RunDir, mishap: str = "") -> dict[str, Any]:
    def job(context: RunContext) -> None:
        unlucky = Unlucky(context.dir, context.attempt, context._events)
        unlucky.mishap, unlucky.summary = mishap, context.summary
        training_job(unlucky)

    waited = in_fork(lambda: worker.main([str(run.path)], job, lambda _: []))
    state, events = run.read_state(), events_of(run)
    return {
        "signal": os.WTERMSIG(waited) if os.WIFSIGNALED(waited) else None,
        "status": run.status(),
        "error": state.error and state.error.code,
        "last event": events[-1].type,
        "last_checkpoint": state.last_checkpoint and Path(state.last_checkpoint).name,
        "checkpoints": [folder.name for folder in list_complete(run.checkpoints)],
        "folders": sorted(path.name for path in run.checkpoints.iterdir()),
        "losses": [[e.step, e.loss] for e in last_attempt(events) if isinstance(e, StepEvent)],
    }


def suffer(run: RunDir, mishap: str, recipe: Recipe) -> dict[str, Any]:
    """The attempt with the mishap and, with its cause put right, the next one."""
    rows, away = Path(str(recipe.data.train)), Path(str(recipe.data.train) + ".away")
    tokens = run.load_plan().data.dir
    if mishap == "lost data":
        rows.rename(away)
        shutil.rmtree(tokens)
    met = attempt(run, mishap)
    if mishap == "lost data":
        away.rename(rows)
    if mishap == "disk full":
        (run.path.parent / "neighbour").unlink()
    return {"met": met, "resumed": attempt(run)}


def main() -> None:
    job = json.load(sys.stdin)
    recipe = Recipe.model_validate(job["recipe"])
    reference = create_run(recipe)

    import whet.engine.methods.sft.job  # noqa: F401  (paid for once, before the forks)

    report = {"reference": attempt(reference)}
    for mishap, changes in job["mishaps"].items():
        own = patched(recipe, {f"training.{key}": value for key, value in changes.items()})
        report[mishap] = suffer(create_run(own), mishap, own)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
