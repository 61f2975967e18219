"""TRL's preference trainers in a run, on rows that come tokenised, without logits, telemetry or copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from ...models.adapters import hold_trained_in_fp32
from ...models.fast_path import program_of
from ..fast_head import COPY, METRICS, put_fast_head
from ..fast_reference import PairReference, RatedReference
from ..flat_steps import FlatSteps
from ..run_loop import RunLoop
from ..sft.fast_choice import mixed_reason
from .without_logits import ContrastWithoutLogits, OddsWithoutLogits, WithoutLogits

ADAPTER = "adapter_model.safetensors"


class Tokenised(Dataset):
    """Rows of tokens: what TRL's constructors would make of texts was done when the run was planned."""

    def map(self, *args: Any, **kwargs: Any) -> Tokenised:  # type: ignore[override]
        """Nothing is left to do."""
        return self


def open_answers(path: Path) -> Tokenised:
    """Stored rows: prompt_ids with chosen_ids and rejected_ids, or with completion_ids and label."""
    rows = Tokenised.from_file(str(path)).remove_columns(["row"])
    assert isinstance(rows, Tokenised)
    return rows


class AnswerTrainer(RunLoop, FlatSteps):
    """What TRL's trainers must do without in a run, and how their checkpoints are loaded."""

    def __init__(self, model: Any, *args: Any, **more: Any) -> None:
        super().__init__(model, *args, **more)
        if isinstance(model, PeftModel):
            if COPY in model.peft_config:
                model.delete_adapter(COPY)  # ours is fresh: the model with its adapter off is the same
            hold_trained_in_fp32(model)  # TRL rounds the adapter of a quantised base to bf16

    def _send_telemetry(self) -> None:
        """Never."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the base class; what TRL notes down of each step is not collected."""
        loss = super().training_step(*args, **kwargs)
        self.forget_notes()
        return loss

    def forget_notes(self) -> None:
        """Of training steps: they would be written where the trainer logs, which ours does not."""
        notes: Any = self
        notes._metrics["train"].clear()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        own: Any = self.model
        if isinstance(own, PeftModel):
            set_peft_model_state_dict(own, load_file(Path(resume_from_checkpoint) / ADAPTER))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint)


class LikelihoodTrainer(AnswerTrainer):
    """Learns from log-probabilities, which come from the fast path where the model is on it."""

    plain_reason: str | None = None
    """Why they do not, though the model is on it."""

    def __init__(self, model: Any, *args: Any, **more: Any) -> None:
        super().__init__(model, *args, **more)
        self.put_head(model)
        program = program_of(model)
        if program is None:
            return
        own: Any = self
        self.plain_reason = mixed_reason(self.args, program.dtype)
        if own.aux_loss_enabled:
            self.plain_reason = "the router's own loss is added"
        if self.plain_reason is None:
            own.head = put_fast_head(model, METRICS)

    def put_head(self, model: Any) -> None:
        """TRL's own head, where its trainer has none."""


class ComparedTrainer(PairReference, LikelihoodTrainer, DPOTrainer):
    """DPO and its kin."""


class RatedTrainer(RatedReference, LikelihoodTrainer, KTOTrainer):
    """KTO, its rows in random order: TRL pairs neighbours beforehand, our collator does it in the batch."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.args.train_sampling_strategy = "random"

    def _compute_loss(self, *args: Any, **more: Any) -> Any:
        """As the base class; how far the model has moved is measured on the micro-batch alone."""
        plain: Any = super()
        with self.own_numbers():
            return plain._compute_loss(*args, **more)

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        """Of the rows themselves; their neighbours' answers are read beside."""
        return super().count_tokens({"attention_mask": inputs["attention_mask"]})


class Stored(WithoutLogits, LikelihoodTrainer):
    """Rows as :func:`compared_collator` makes them, which is DPO's way; without logits."""

    def forget_notes(self) -> None:
        """See the base class."""
        notes: Any = self
        notes._stored_metrics.pop("train", None)

    def rows_of(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, attention mask and answers' mask."""
        return batch["input_ids"], batch["attention_mask"], batch["completion_mask"]


class OddsTrainer(OddsWithoutLogits, Stored, ORPOTrainer):
    """ORPO."""


class ContrastTrainer(ContrastWithoutLogits, Stored, CPOTrainer):
    """CPO and SimPO."""


class RatedCollator:
    """Rated answers, and each prompt with the answer of the row before it: how far the model has moved.

    Args:
        pad_id: filler.
        max_length: of a prompt with a foreign answer.
    """

    def __init__(self, pad_id: int, max_length: int) -> None:
        self.collate = DataCollatorForUnpairedPreference(pad_token_id=pad_id, max_length=max_length)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch of stored rows, as KTO's trainer takes it."""
        others = [rows[-1], *rows[:-1]]
        batch: dict[str, Any] = self.collate(
            [
                {**row, "label": row["label"] == "true", "KL_completion_ids": other["completion_ids"]}
                for row, other in zip(rows, others, strict=True)
            ]
        )
        return batch


def compared_collator(pad_id: int) -> DataCollatorForPreference:
    """Chosen answers, then rejected ones, each behind its prompt."""
    return DataCollatorForPreference(pad_token_id=pad_id)
