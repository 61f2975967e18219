"""From a recipe's wishes to exact settings: what `auto` means here, and why. Pure: no files, no machine
calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .adapted import saved_module_parameters, trainable_parameters
from .data.inspection import DataReport
from .hardware import Machine, supports_bf16, supports_fp8
from .methods.kinds import NEXT_TOKEN
from .methods.vision.layers import seeing_parameters
from .models.facts import ModelFacts
from .parallel.strategy import Strategy
from .recipe import Optimizer, Recipe, TrainingSection
from .schedule import Schedule

DType = Literal["bf16", "fp16", "fp32"]
HeldEnd = Literal["16bit", "int8", "nf4"]
SAVES_PER_RUN = 10
EVALS_PER_RUN = 5
EMBEDDING_SHARE = 0.1
"""Of the learning rate, for embedding and head that train whole: a step moves each of their weights by
itself, an adapter's only what two small factors span."""


class Resolved(BaseModel):
    """Every value the worker needs that the recipe left open. ``RECIPE_KEYS`` names the setting behind
    each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = "sft"
    device: Literal["cuda", "cpu"]
    machine: str = Field(description="GPU or CPU name; a measured speed belongs to it.")
    compute_dtype: DType
    base_precision: Literal["bf16", "fp16", "fp32", "nf4", "int8", "fp8"]
    products: Literal["16bit", "fp8"] = Field(
        default="16bit", description="What a quantised base is multiplied in."
    )
    embedding_precision: HeldEnd = "16bit"
    head_precision: HeldEnd = Field(default="16bit", description="With tied weights that of the embedding.")
    optimizer: Optimizer
    embedding_learning_rate: float | None = Field(
        default=None, description="Of embedding and head that train whole; None: the learning rate."
    )
    max_length: int
    template: str | None = Field(
        description="A name of ours, `model` for the model's own, None for plain text."
    )
    strategy: Strategy = Field(default="single", description="How several GPUs share a step.")
    ranks: int = Field(default=1, description="Processes, one a GPU, each with its share of a step's rows.")
    batch_size: int = Field(description="Rows of a micro-batch of one rank.")
    gradient_accumulation: int = Field(description="Micro-batches of one rank in a step.")
    packing: bool
    sequences: int = Field(description="Training rows, or packed sequences, in one epoch.")
    longest: int = Field(description="Tokens of the longest sequence a step can meet.")
    texts_per_row: int = Field(default=1, description="Texts of a row, each by itself.")
    answers: int = Field(default=0, description="Answers that are written before a step trains on them.")
    turns: int = Field(default=1, description="Times that they are written in, each answer with its cache.")
    second_copy: bool = Field(default=False, description="Base weights are held again, as they were.")
    steps_per_epoch: int
    total_steps: int
    epochs: float = Field(description="Passes over the data that total_steps make.")
    warmup_steps: int
    save_every: int
    eval_every: int | None = Field(description="None without held-out rows.")
    gradient_checkpointing: bool
    threads: int
    trainable_parameters: int
    encoder_trains: bool = Field(default=False, description="The image encoder keeps its activations.")
    schedule: Schedule | None = Field(
        default=None, description="How the fast path runs a step; None for a model that is not on it."
    )

    @property
    def rows_per_rank(self) -> int:
        """Rows of an optimizer step that one rank takes."""
        return self.batch_size * self.gradient_accumulation

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, of all ranks."""
        return self.rows_per_rank * self.ranks

    @property
    def tokens_per_micro_batch(self) -> int:
        """The most a micro-batch can hold, padding included; memory follows it."""
        return self.batch_size * self.texts_per_row * self.longest


RECIPE_KEYS = {
    "compute_dtype": "training.precision",
    "base_precision": "model.precision",
    "products": "model.products",
    "embedding_precision": "model.embedding_precision",
    "head_precision": "model.head_precision",
    "optimizer": "training.optimizer",
    "embedding_learning_rate": "training.embedding_learning_rate",
    "max_length": "model.max_length",
    "template": "data.template",
    "total_steps": "training.max_steps",
    "warmup_steps": "training.warmup",
    "save_every": "training.save_every",
    "eval_every": "eval.every",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "threads": "training.threads",
    "batch_size": "training.batch_size",
    "gradient_accumulation": "training.gradient_accumulation",
    "ranks": "hardware.gpus",
}


def recipe_origins(recipe: Recipe, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Dotted key -> ``default``, ``recipe`` or ``override`` for every setting of the recipe.

    Args:
        recipe: with the overrides already applied.
        overrides: the ``key=value`` texts (or bare keys) that were applied.
    """
    changed = {override.partition("=")[0].strip() for override in overrides}
    origins: dict[str, str] = {}

    def walk(section: BaseModel, prefix: str) -> None:
        for name in type(section).model_fields:
            key, value = prefix + name, getattr(section, name)
            if isinstance(value, BaseModel):
                walk(value, f"{key}.")
            elif key in changed:
                origins[key] = "override"
            else:
                origins[key] = "recipe" if name in section.model_fields_set else "default"

    walk(recipe, "")
    return origins


def resolve(
    recipe: Recipe, facts: ModelFacts, machine: Machine, report: DataReport, sequences: int
) -> tuple[Resolved, dict[str, str]]:
    """Exact settings, and the planner's reasons by recipe key. Gradient checkpointing is left off for
    ``auto``, and there is no schedule yet: both follow from memory (:func:`whet.engine.fitting.fit`).

    Args:
        recipe: validated.
        facts: of the model.
        machine: where it will run.
        report: of the prepared data.
        sequences: rows, or packed sequences, of one epoch.
    """
    why: dict[str, str] = {}

    def planned(key: str, reason: str) -> None:
        why[key] = f"planner: {reason}"

    training = recipe.training
    compute = _compute_dtype(training, machine, planned)
    base = _base_precision(recipe, facts, compute, planned)
    embedding, head = _end_precisions(recipe, facts, planned)
    steps = _steps(training, sequences, held_out=report.eval is not None, recipe=recipe, planned=planned)
    max_length = resolved_length(recipe, facts)
    if max_length < recipe.model.max_length:
        planned("model.max_length", f"the model has {max_length} positions")
    if training.threads is None:
        planned("training.threads", f"{machine.cpu_count} usable cores")
    if recipe.data.template is None:
        planned("data.template", "the model's own" if report.template else "the rows are plain text")
    resolved = Resolved(
        method=recipe.method.kind,
        device="cuda" if machine.gpus else "cpu",
        machine=machine.label,
        compute_dtype=compute,
        base_precision=base,
        products=_products(recipe, base, machine),
        embedding_precision=embedding,
        head_precision=head,
        optimizer=_optimizer(training, machine, planned),
        embedding_learning_rate=_embedding_rate(recipe, planned),
        max_length=max_length,
        template=report.template,
        batch_size=training.batch_size,
        gradient_accumulation=training.gradient_accumulation,
        packing=recipe.method.packing,
        sequences=sequences,
        longest=_longest(recipe, report, max_length),
        texts_per_row=_texts_per_row(recipe, report),
        answers=_answers(recipe),
        second_copy=_second_copy(recipe, report),
        **steps,
        gradient_checkpointing=training.gradient_checkpointing == "on",
        threads=training.threads or machine.cpu_count,
        trainable_parameters=_trainable(recipe, facts),
        encoder_trains=recipe.method.kind == "vision" and recipe.method.finetune_vision_layers,
    )
    return resolved, why


def _longest(recipe: Recipe, report: DataReport, max_length: int) -> int:
    """Tokens of the longest sequence that a step can meet."""
    if recipe.method.kind == "grpo":
        return recipe.method.longest(report.train.length.max, max_length)
    return max_length if recipe.method.packing else min(max_length, max(report.train.length.max, 1))


def _texts_per_row(recipe: Recipe, report: DataReport) -> int:
    """Those of the format, and what a loss lets the model read beside them."""
    more = 0 if recipe.method.kind == "sft" else recipe.method.more_inputs(report.format.name)
    return report.texts_per_row + more


def _answers(recipe: Recipe) -> int:
    """Of a generation, where the model answers while it learns."""
    if recipe.method.kind != "grpo":
        return 0
    training = recipe.training
    return training.batch_size * recipe.method.micro_batches_a_generation(training.gradient_accumulation)


def _trainable(recipe: Recipe, facts: ModelFacts) -> int:
    """Parameters that get a gradient; of a model that sees, those of the chosen parts."""
    if recipe.method.kind != "vision":
        return trainable_parameters(facts, recipe.adapter)
    whole = 0 if recipe.adapter.kind == "none" else saved_module_parameters(facts, recipe.adapter)
    return seeing_parameters(facts, recipe) + whole


def _second_copy(recipe: Recipe, report: DataReport) -> bool:
    """Whether a loss measures from the base weights while they train."""
    if recipe.adapter.kind != "none":
        return False
    if recipe.method.kind == "preference":
        return recipe.method.measured(report.format.name)
    return recipe.method.kind == "grpo" and recipe.method.beta > 0


def _products(recipe: Recipe, base: str, machine: Machine) -> Literal["16bit", "fp8"]:
    """FP8 where it was asked for, or the base is held in it, and all GPUs have the units."""
    asked = recipe.model.products
    wanted = asked == "fp8" or (asked == "auto" and base == "fp8")
    return "fp8" if wanted and supports_fp8(machine) else "16bit"


def resolved_length(recipe: Recipe, facts: ModelFacts) -> int:
    """Tokens a row may have: the recipe's max_length, at most the model's positions."""
    return min(recipe.model.max_length, facts.max_positions or recipe.model.max_length)


def _compute_dtype(training: TrainingSection, machine: Machine, planned: Any) -> DType:
    if training.precision != "auto":
        return training.precision
    if not machine.gpus:
        planned("training.precision", "no GPU, and CPUs train in fp32")
        return "fp32"
    gpu = min(machine.gpus, key=lambda gpu: gpu.capability)
    capability = ".".join(map(str, gpu.capability))
    if supports_bf16(machine):
        planned("training.precision", f"{gpu.name} (capability {capability}) computes in bf16")
        return "bf16"
    planned("training.precision", f"{gpu.name} (capability {capability} < 8.0) has no bf16")
    return "fp16"


def _base_precision(recipe: Recipe, facts: ModelFacts, compute: DType, planned: Any) -> Any:
    asked = recipe.model.precision
    if facts.quantization in ("nf4", "fp4", "int8"):
        held = "int8" if facts.quantization == "int8" else "nf4"
        if asked != held:
            planned("model.precision", f"the checkpoint itself is quantised ({facts.quantization})")
        return held
    if recipe.adapter.kind == "none":
        # An update below 1/256 of a weight is lost in bf16.
        planned("model.precision", "all weights train, so they are held in fp32")
        return "fp32"
    if asked != "auto":
        return asked
    planned("model.precision", f"as the compute type, {compute}")
    return compute


def _end_precisions(recipe: Recipe, facts: ModelFacts, planned: Any) -> tuple[HeldEnd, HeldEnd]:
    """Of embedding and head: 16 bits unless asked; tied weights are one table, so one choice is both."""
    asked = recipe.model.embedding_precision, recipe.model.head_precision
    names = "model.embedding_precision", "model.head_precision"
    if facts.tied and "auto" in asked and asked != ("auto", "auto"):
        one = asked[1] if asked[0] == "auto" else asked[0]
        planned(names[asked.index("auto")], "embedding and head are tied: one table serves both")
        asked = one, one
    for name, choice in zip(names, asked, strict=True):
        if choice == "auto":
            planned(name, "as the compute type")
    embedding, head = ("16bit" if choice == "auto" else choice for choice in asked)
    return embedding, head


def _optimizer(training: TrainingSection, machine: Machine, planned: Any) -> Optimizer:
    """bitsandbytes 0.50 has 8-bit AdamW for CUDA and CPU; without the package plain AdamW steps in."""
    if training.optimizer == "adamw_8bit" and "bitsandbytes" not in machine.versions:
        planned("training.optimizer", "bitsandbytes is not installed, so states stay in fp32 (adamw)")
        return "adamw"
    return training.optimizer


def _embedding_rate(recipe: Recipe, planned: Any) -> float | None:
    training, ends = recipe.training, recipe.adapter.whole_ends()
    language = recipe.method.kind in NEXT_TOKEN
    if training.embedding_learning_rate is not None or not ends or not language:
        return training.embedding_learning_rate
    planned(
        "training.embedding_learning_rate",
        f"a tenth of learning_rate, since {' and '.join(ends)} train whole",
    )
    return float(f"{EMBEDDING_SHARE * training.learning_rate:.6g}")


def _steps(
    training: TrainingSection, sequences: int, *, held_out: bool, recipe: Recipe, planned: Any
) -> dict[str, Any]:
    """Steps as transformers' Trainer counts them: the last micro-batch and the last step may be partial."""
    micro_batches = math.ceil(sequences / training.batch_size)
    if recipe.method.kind == "grpo":
        micro_batches = recipe.method.micro_batches(
            sequences, training.batch_size, training.gradient_accumulation
        )
    per_epoch = max(1, math.ceil(micro_batches / training.gradient_accumulation))
    total = training.max_steps or max(1, math.ceil(training.epochs * per_epoch))
    if training.max_steps is None:
        planned("training.max_steps", f"{training.epochs:g} epochs of {per_epoch} steps")
    warmup = math.ceil(total * training.warmup) if training.warmup < 1 else int(training.warmup)
    if warmup > total // 2 and "warmup" not in training.model_fields_set:
        warmup = total // 2
        planned("training.warmup", f"at most half of {total} steps")
    save_every = training.save_every or max(1, math.ceil(total / SAVES_PER_RUN))
    if training.save_every is None:
        planned("training.save_every", f"{SAVES_PER_RUN} checkpoints a run")
    eval_every = None
    if held_out:
        eval_every = recipe.eval.every or max(1, math.ceil(total / EVALS_PER_RUN))
        if recipe.eval.every is None:
            planned("eval.every", f"{EVALS_PER_RUN} evaluations a run")
    elif recipe.eval.every is None:
        planned("eval.every", "no held-out rows")
    return {
        "steps_per_epoch": per_epoch,
        "total_steps": total,
        "epochs": round(total / per_epoch, 4),
        "warmup_steps": min(warmup, total),
        "save_every": min(save_every, total),
        "eval_every": eval_every,
    }
