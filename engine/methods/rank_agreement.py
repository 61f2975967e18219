"""What is decided beside the training loop is decided by process 0: to save, to evaluate, to end."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from ..parallel.collectives import agreed


def first_says(answer: bool) -> bool:
    """The answer of process 0."""
    return bool(agreed(int(answer))[0])


class Agreement(TrainerCallback):
    """Comes after every callback that decides; the others then do what process 0 does.

    Requests of people, live checks and clocks are seen by process 0 alone. One small exchange a step.
    """

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        save, evaluate, end = agreed(
            int(control.should_save), int(control.should_evaluate), int(control.should_training_stop)
        )
        control.should_save, control.should_evaluate = bool(save), bool(evaluate)
        control.should_training_stop = bool(end)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        save, end, best = agreed(
            int(control.should_save), int(control.should_training_stop), state.best_global_step or 0
        )
        control.should_save, control.should_training_stop = bool(save), bool(end)
        state.best_global_step = best or None
