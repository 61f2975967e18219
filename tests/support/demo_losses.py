"""The demo's first losses: what the golden file holds and what the test measures again."""

from __future__ import annotations

from pathlib import Path

from support.tiny_runs import create_run, events_of, next_attempt

from whet.engine.methods.sft.job import train
from whet.engine.recipe_files import load_recipe
from whet.engine.runs.context import RunContext, Stopped
from whet.engine.runs.events import Event, StepEvent

GOLDEN = Path(__file__).parents[1] / "golden" / "demo_losses.json"
STEPS = 20
# One thread, since sums depend on how they are split; no samples and no held-out rows, which change no loss.
OVERRIDES = ["training.threads=1", "training.save_every=1000", "data.eval=null", "sampling.prompts=[]"]


class FirstSteps(RunContext):
    """Asks to stop, at once, after the last step of interest."""

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, StepEvent) and event.step == STEPS:
            self.signals = 2


def first_losses() -> list[float]:
    """Train the shipped recipe on the shipped model for twenty steps, in the folder ``$WHET_HOME`` names."""
    run = create_run(load_recipe("demo", OVERRIDES))
    context = next_attempt(run)
    try:
        train(FirstSteps(run, context.attempt, context._events))
    except Stopped:
        return [event.loss for event in events_of(run) if isinstance(event, StepEvent)]
    raise RuntimeError(f"The demo ended before step {STEPS}.")
