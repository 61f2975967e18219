"""What a resumed attempt has behind it."""

from __future__ import annotations

from pathlib import Path

from ..runs.context import RunContext
from ..runs.events import EvalEvent, Event, StepEvent, last_attempt, read_events
from .checkpoints import step_of


def earlier_events(context: RunContext, checkpoint: Path | None) -> list[Event]:
    """Steps and evaluations up to the checkpoint that is resumed."""
    if checkpoint is None:
        return []
    last = step_of(checkpoint)
    events = last_attempt(read_events(context.dir.events)[0])
    return [e for e in events if isinstance(e, StepEvent | EvalEvent) and e.step <= last]
