"""The live checks of reinforcement learning in the training loop."""

from __future__ import annotations

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from ..watching import Watching


class RewardWatching(Watching):
    """As the base class; a first step whose answers all score the same has no gradient, and need not have."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.stats.metrics.get("no_spread", 0.0) < 1.0:
            super().on_pre_optimizer_step(args, state, control, **kwargs)
