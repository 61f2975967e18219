"""What must hold of a run however its worker died, in words that say what was broken."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from support.tiny_runs import events_of

from whet.engine.methods.checkpoints import list_complete, step_of
from whet.engine.run_view import view_run
from whet.engine.runs.events import EvalEvent, StepEvent, last_attempt
from whet.engine.runs.store import RunDir
from whet.tui.render.outcome import run_details

WEIGHTS = (".safetensors", ".gguf")
HALF = ("*.partial", ".*.new", ".*.partial", ".scratch*")


@dataclass(frozen=True)
class Seen:
    """Of a run at one moment: its curve, its finished checkpoints and the weights that are in sight."""

    status: str
    curve: dict[int, tuple[float, float, float]]
    evals: dict[int, float]
    checkpoints: list[int]
    weights: dict[str, str] = field(repr=False)
    """Path in ``export/`` -> SHA-256."""

    @classmethod
    def of(cls, run: RunDir) -> Seen:
        events = list(last_attempt(events_of(run)))
        steps = [event for event in events if isinstance(event, StepEvent)]
        return cls(
            status=run.status(),
            curve={one.step: (one.loss, one.grad_norm, one.learning_rate) for one in steps},
            evals={event.step: event.loss for event in events if isinstance(event, EvalEvent)},
            checkpoints=[step_of(folder) for folder in list_complete(run.checkpoints)],
            weights=_weights(run.export),
        )


def _weights(export: Path) -> dict[str, str]:
    found = {}
    for path in sorted(export.rglob("*")):
        inside = path.relative_to(export)
        if path.suffix in WEIGHTS and not any(part.startswith(".") for part in inside.parts):
            found[inside.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def broken_by_a_kill(run: RunDir, before: Seen, reference: Seen) -> list[str]:
    """What a killed worker broke: nothing, if all is well.

    Args:
        run: whose worker was killed.
        before: the run before that attempt.
        reference: the same run, never killed.
    """
    now, broken = Seen.of(run), []
    state = run.read_state()
    if now.status != ("interrupted" if state.launched is not None else "queued"):
        broken.append(f"the state says {now.status}")
    if state.launched is not None and f"whet resume {run.id}" not in shown(run):
        broken.append("no next step is offered")
    return broken + other_than(now, reference) + lost(before, now)


def lost(before: Seen, now: Seen) -> list[str]:
    """What was finished, and is not there any more."""
    broken = []
    if max(before.checkpoints, default=0) > max(now.checkpoints, default=0):
        broken.append(f"checkpoint {max(before.checkpoints)} is lost")
    gone = sorted(set(before.weights) - set(now.weights))
    return broken + ([f"finished files are lost: {gone}"] if gone else [])


def broken_at_the_end(run: RunDir, reference: Seen) -> list[str]:
    """What the last resume did not mend."""
    now, broken = Seen.of(run), []
    if now.status != "finished":
        broken.append(f"the resumed run is {now.status}: {run.read_state().error}")
    for what in ("curve", "evals", "checkpoints", "weights"):
        if getattr(now, what) != getattr(reference, what):
            broken.append(f"{what}: {getattr(now, what)}, not {getattr(reference, what)}")
    last = run.read_state().last_checkpoint
    if last is None or not Path(last).is_dir():
        broken.append(f"the state's last checkpoint is not there: {last}")
    left = sorted(str(path.relative_to(run.path)) for glob in HALF for path in run.path.rglob(glob))
    return broken + ([f"half-written files are left: {left}"] if left else [])


def shown(run: RunDir) -> str:
    """What `whet show` prints."""
    page = io.StringIO()
    Console(width=200, file=page).print(run_details(view_run(run)))
    return page.getvalue()


def other_than(now: Seen, reference: Seen) -> list[str]:
    """Steps, evaluations and files that are in sight, and are not those of the run that was never killed."""
    broken = []
    for what in ("curve", "evals", "weights"):
        ours, theirs = getattr(now, what), getattr(reference, what)
        wrong = [key for key in ours if ours[key] != theirs.get(key)]
        if wrong:
            broken.append(f"{what} differ at {wrong}")
    return broken
