"""Steps of a script's preference trainer on the fast path that its model is on."""

from __future__ import annotations

from typing import Any, ClassVar

from peft import PeftModel

from ..methods.fast_head import METRICS, put_fast_head
from ..methods.flat_steps import FlatSteps
from ..methods.preference.without_logits import WithoutLogits
from ..methods.sft.fast_choice import mixed_reason
from ..models.adapters import hold_trained_in_fp32
from ..models.fast_path import apply_fast_path, program_of
from .checkpointing import is_checkpointing, recompute_by_program
from .fast import to_fast_path
from .notes import say
from .scheduling import schedule_comparison


class FastAnswers(FlatSteps):
    """Goes before one of TRL's trainers that compare log-probabilities among a class's bases.

    Models that `FastLanguageModel` loaded answer on the fast path; for any other nothing changes.
    """

    forwards: ClassVar[int] = 0
    """Passes without a gradient beside the one that trains."""
    use_weighting = False
    """DPO's by the probability of its answers (WPO)."""

    def __init__(self, model: Any, *positional: Any, args: Any, **given: Any) -> None:
        recompute_by_program(args, model)
        parent: Any = super()
        parent.__init__(model, *positional, args=args, **given)
        if isinstance(self.model, PeftModel) and program_of(self.model) is None:  # of peft_config=
            to_fast_path(self.model, None)
            recompute_by_program(self.args, self.model)
        own: Any = self
        own.sparing = self._put_fast_head()  # of trainers that make logits otherwise
        self._may_recompute = is_checkpointing(self.model)

    def _put_fast_head(self) -> bool:
        """Whether log-probabilities come from the fast path; why they do not is said, for a model on it."""
        own: Any = self
        program = program_of(own.model)
        if program is None:
            return False
        reason = mixed_reason(self.args, program.dtype)
        if own.aux_loss_enabled:
            reason = "the router's own loss is added"
        if self.use_weighting:
            reason = "use_weighting=True needs all probabilities"
        if reason is not None:
            say(f"Log-probabilities come from TRL's own head, which is slower: {reason}.")
            return False
        hold_trained_in_fp32(own.model)  # TRL rounds the adapter of a quantised base to bf16
        if isinstance(self, WithoutLogits):
            self.put_head(own.model)
        own.head = put_fast_head(own.model, METRICS)
        return True

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's, on the model as it is now, its activations kept as far as memory goes."""
        self._follow_model()
        schedule_comparison(self, self._may_recompute, self.forwards)
        return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As TRL's, on the model as it is now."""
        self._follow_model()
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def _follow_model(self) -> None:
        """Read the model anew if an adapter was added, merged or taken away since it was read."""
        program = program_of(self.model)
        if program is not None and not program.is_current():
            apply_fast_path(self.model, program.dtype)
