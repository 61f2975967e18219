"""From a plan's exact values to TRL's configuration: every choice stated, none left to a default."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import SFTConfig

from ...parallel.deepspeed import deepspeed_config
from ...parallel.fsdp import casts_gathered
from ...parallel.process_group import world_size

if TYPE_CHECKING:
    from ...recipe import Recipe, TrainingSection
    from ...resolve import Resolved

OPTIMIZERS = {"adamw_8bit": "adamw_bnb_8bit", "adamw": "adamw_torch"}
MIN_LR_SHARE = 0.1
"""Where `cosine_with_min_lr` ends, as a share of the peak."""


def training_arguments(
    recipe: Recipe, resolved: Resolved, output: Path, optimizer: str, *, recompute: bool = True
) -> SFTConfig:
    """TRL's configuration for a run. Saving, evaluating and logging are driven by callbacks of ours.

    Args:
        recipe: hyperparameters.
        resolved: what the plan made of the open ones.
        output: folder of the run's checkpoints.
        optimizer: ``adamw_8bit`` or ``adamw``, as it was found to work here.
        recompute: let transformers checkpoint activations where the plan says so; the fast path has own way.
    """
    training = recipe.training
    how = resolved.strategy if world_size() > 1 else "single"  # an evaluation of the run may be alone
    casts = casts_gathered(resolved.base_precision, resolved.compute_dtype)
    return SFTConfig(
        output_dir=str(output),
        max_steps=resolved.total_steps,
        per_device_train_batch_size=resolved.batch_size,
        per_device_eval_batch_size=recipe.eval.batch_size,
        gradient_accumulation_steps=resolved.gradient_accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        lr_scheduler_kwargs=scheduler_of(training),
        warmup_steps=resolved.warmup_steps,
        optim=OPTIMIZERS[optimizer],
        weight_decay=training.weight_decay,
        adam_beta1=training.beta1,
        adam_beta2=training.beta2,
        adam_epsilon=training.epsilon,
        # With no bound nothing is clipped, but the norm is still measured.
        max_grad_norm=training.max_grad_norm or float("inf"),
        bf16=resolved.compute_dtype == "bf16" and not (how == "fsdp" and casts),
        fp16=resolved.compute_dtype == "fp16",
        use_cpu=resolved.device == "cpu",
        deepspeed=deepspeed_config(recipe, resolved) if how == "deepspeed" else None,
        **checkpointing(resolved.gradient_checkpointing and recompute),
        neftune_noise_alpha=recipe.method.neftune_alpha if recipe.method.kind == "sft" else None,
        seed=training.seed,
        data_seed=training.seed,
        # Rows come tokenised, cut and labelled; collators of ours pad or pack them.
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
        packing=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=resolved.device == "cuda",
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        save_total_limit=None,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
    )


def scheduler_of(training: TrainingSection) -> dict[str, Any]:
    """What transformers' scheduler of that name must be told."""
    return {"min_lr_rate": MIN_LR_SHARE} if training.scheduler == "cosine_with_min_lr" else {}


def checkpointing(on: bool) -> dict[str, Any]:
    """Recomputing activations, under the name that this version of transformers has for it."""
    newer = "activation_checkpointing"
    name = newer if newer in {field.name for field in fields(SFTConfig)} else "gradient_checkpointing"
    return {name: on, f"{name}_kwargs": {"use_reentrant": False} if on else None}
