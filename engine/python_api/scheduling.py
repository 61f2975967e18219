"""How a script's steps go through the fast path: as much at once as fits, and the least computed twice."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from peft import LoraConfig, PeftModel

from ..methods.sft.optimizer import FLAT_OPTIMIZERS
from ..methods.sft.scheduled import follow, follow_schedule, schedule_here
from ..methods.sft.trainer import SupervisedTrainer
from ..models.facts import read_model_facts
from ..models.fast_path import program_of
from ..models.fast_shape import Held
from ..models.fast_time import Rows
from ..models.loading import DTYPES
from ..recipe import AdapterSection
from ..schedule import Schedule
from ..scheduler import Recompute
from .state import ModelState, state_of

NAMES = {dtype: name for name, dtype in DTYPES.items()}
ROUNDED = {"Linear4bit": "nf4", "Linear8bitLt": "int8", "Fp8Linear": "fp8"}
UNKNOWN_LENGTH = 2048
"""Tokens of the longest row of a stream whose length nobody bounds."""


def schedule_steps(trainer: SupervisedTrainer, may_recompute: bool) -> None:
    """Group the rows of a step by the memory that is free now, and keep what fits of their activations.

    Without a prediction (a model the memory model does not know) no more tokens go through at once than the
    script's own micro-batches could hold, and activations are kept or not as it asked.

    Args:
        trainer: of a model that `FastLanguageModel` loaded; nothing happens to any other.
        may_recompute: the script left activations to be recomputed where that helps.
    """
    fast, model = trainer.fast, trainer.model
    state = state_of(model) if model is not None else None
    if fast is None or state is None or not isinstance(model, PeftModel):
        return
    args = trainer.args
    lengths = _lengths(trainer)
    fast.budget = args.per_device_train_batch_size * max(lengths)
    if not fast.program.report.complete:
        return
    rows = Rows.of_lengths(lengths, args.per_device_train_batch_size * args.gradient_accumulation_steps)
    schedule = _schedule(trainer, model, state, rows, may_recompute)
    if schedule is not None:
        follow(fast, schedule)


def schedule_comparison(trainer: Any, may_recompute: bool, forwards: int) -> None:
    """Keep what fits of a micro-batch's activations, for a loss that compares the rows of one.

    Args:
        trainer: one of TRL's, whose rows are tokenised, of a model that `FastLanguageModel` loaded; nothing
            happens to any other.
        may_recompute: as :func:`schedule_steps`.
        forwards: passes without a gradient beside.
    """
    model = trainer.model
    program, state = program_of(model), state_of(model)
    if program is None or state is None or not program.report.complete or not isinstance(model, PeftModel):
        return
    lengths, texts = _answer_lengths(trainer)
    rows = Rows.of_lengths(lengths, texts * trainer.args.per_device_train_batch_size)
    schedule = _schedule(trainer, model, state, rows, may_recompute, forwards)
    if schedule is not None:
        follow_schedule(program, schedule)


def _schedule(
    trainer: Any,
    model: PeftModel,
    state: ModelState,
    rows: Rows,
    may_recompute: bool,
    forwards: int | None = None,
) -> Schedule | None:
    args = trainer.args
    kinds = {type(module).__name__ for module in model.modules()}
    base = next((held for kind, held in ROUNDED.items() if kind in kinds), NAMES[state.dtype])
    bits = FLAT_OPTIMIZERS.get(str(getattr(args.optim, "value", args.optim)), 8)
    held = Held(
        compute_dtype=NAMES[state.dtype],
        base_precision=base,
        optimizer="adamw_8bit" if bits == 8 else "adamw",
        device=args.device.type,
    )
    adapter = _adapter(model.peft_config[model.active_adapter])  # type: ignore[arg-type]
    recompute: Recompute = "auto" if may_recompute else "off"
    return schedule_here(read_model_facts(state.base_dir), adapter, held, rows, recompute, forwards)


ANSWERS = (
    (("prompt_ids", "chosen_ids"), ("prompt_ids", "rejected_ids")),
    (("prompt_ids", "completion_ids"),),
    (("chosen_input_ids",), ("rejected_input_ids",)),
)
"""Columns that TRL's trainers tokenise rows to: those of each text of a row, one behind the other."""


def _answer_lengths(trainer: Any) -> tuple[list[int], int]:
    """Tokens of each text, as :func:`_lengths`, and texts of a row."""
    rows, most = trainer.train_dataset, trainer.args.max_length or UNKNOWN_LENGTH
    if isinstance(rows, Dataset):
        columns = rows.with_format("arrow")
        for texts in ANSWERS:
            if {name for text in texts for name in text} <= set(rows.column_names):
                parts = [[pc.list_value_length(columns[name]).to_pylist() for name in text] for text in texts]
                found = [min(most, sum(row)) for text in parts for row in zip(*text, strict=True)]
                return found, len(texts)
    return [most], 2


def _lengths(trainer: SupervisedTrainer) -> list[int]:
    """Tokens of each training row; of a stream, the most that any row may have."""
    rows = trainer.train_dataset
    if isinstance(rows, Dataset) and "input_ids" in rows.column_names:
        lengths: list[int] = pc.list_value_length(rows.with_format("arrow")["input_ids"]).to_pylist()
        return lengths
    args: Any = trainer.args
    return [args.max_length or UNKNOWN_LENGTH]


def _adapter(config: LoraConfig) -> AdapterSection:
    """The part of a recipe that says the same as a PEFT configuration."""
    targets = config.target_modules
    return AdapterSection(
        kind="dora" if config.use_dora else "rslora" if config.use_rslora else "lora",
        rank=config.r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        bias=config.bias,
        target_modules=sorted(targets) if isinstance(targets, set | list) else "all-linear",
        modules_to_save=list(config.modules_to_save or []),
    )
