"""`SFTTrainer` for models that see: transformers' trainer, rows left as they are until it is their turn."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch.utils.data import Dataset as TorchDataset
from transformers import TrainingArguments

from ..errors import WhetError
from ..methods.vision.trainer import AnswersLoss
from .notes import say
from .seeing import PictureTrainer
from .seeing_processor import LARGEST, SeeingProcessor
from .spellings import config_from_trainer, refuse_unknown
from .state import state_of
from .vision_collator import VisionDataCollator

ARGUMENTS = ("callbacks", "optimizers")
METRICS = ("compute_metrics", "preprocess_logits_for_metrics")
RECOMPUTING = ("gradient_checkpointing", "activation_checkpointing")


class Rows(TorchDataset[Any]):
    """A Python list of rows; nothing is done to them."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class VisionSFTTrainer(PictureTrainer, AnswersLoss):
    """What `SFTTrainer` becomes for a `VisionDataCollator`, or for the processor of a `FastVisionModel`.

    Args:
        model: of `FastVisionModel`.
        args: an `SFTConfig` or other training arguments.
        data_collator: by default one that keeps images within 300 to 1000 pixels.
        train_dataset: a list of rows, or a data set; images may be Pillow's.
        eval_dataset: the same.
        processing_class: the processor.
        tokenizer: its older name.
        formatting_func: for the default collator.
        **given: the trainer's arguments, and those that moved to the configuration.

    Raises:
        WhetError: `python_api.packing`, `python_api.metrics`, `python_api.unknown_argument`,
            `python_api.conflict`.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        tokenizer: Any = None,
        formatting_func: Any = None,
        **given: Any,
    ) -> None:
        from .trl_classes import SFTConfig

        config: Any = SFTConfig("outputs") if args is None else copy.copy(args)
        explicit = getattr(config, "explicit", {})
        moved = config_from_trainer(given, explicit)
        for name, value in moved.items():
            setattr(config, name, value)
        _refuse_metrics(given)
        refuse_unknown("SFTTrainer", given, ARGUMENTS)
        if getattr(config, "packing", False):
            raise WhetError(
                "python_api.packing",
                "packing=True: rows with images cannot be packed.",
                "Leave packing out.",
            )
        processor = processing_class or tokenizer
        if data_collator is None:
            data_collator = VisionDataCollator(model, processor, formatting_func=formatting_func)
        if isinstance(data_collator, VisionDataCollator) and "max_length" in {*explicit, *moved}:
            data_collator.max_seq_length = config.max_length or LARGEST
        state = state_of(model)
        if state is not None and not any(name in explicit for name in RECOMPUTING):
            for name in {one.name for one in fields(config)} & {*RECOMPUTING}:
                setattr(config, name, bool(state.gradient_checkpointing))
        config.remove_unused_columns = False
        own = processor.tokenizer if isinstance(processor, SeeingProcessor) else processor
        super().__init__(
            model,
            config,
            data_collator=data_collator,
            train_dataset=_as_rows(train_dataset),
            eval_dataset=_as_rows(eval_dataset),
            processing_class=own,
            **given,
        )
        say("Models that see run on transformers' own layers, which is slower than the fast path.")

    def supervise_responses(self, *markers: str | None) -> None:
        """What `train_on_responses_only` does to this trainer: its collator does the labelling.

        Raises:
            WhetError: `python_api.collator` for a collator of another library.
        """
        collator = self.data_collator
        if not isinstance(collator, VisionDataCollator):
            raise WhetError(
                "python_api.collator",
                f"{type(collator).__name__} makes the labels of this trainer.",
                "Use VisionDataCollator, or label the answers there.",
            )
        collator.supervise_responses(*markers)


def _refuse_metrics(given: dict[str, Any]) -> None:
    """None is what scripts pass on; a function would never be called."""
    for name in METRICS:
        if given.pop(name, None) is not None:
            raise WhetError(
                "python_api.metrics",
                f"{name}: an evaluation of a model that sees keeps no logits to measure.",
                "Leave it out: eval_loss and eval_token_accuracy are measured.",
            )


def _as_rows(rows: Any) -> Any:
    return Rows(rows) if isinstance(rows, list | tuple) else rows
