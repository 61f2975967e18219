"""From a plan's exact values to what transformers' trainer must be told, whatever the method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .sft.arguments import OPTIMIZERS, scheduler_of

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..resolve import Resolved


def shared_arguments(recipe: Recipe, resolved: Resolved, output: Path, optimizer: str) -> dict[str, Any]:
    """Every choice stated; saving, evaluating and logging are driven by callbacks of ours.

    Args:
        recipe: hyperparameters.
        resolved: what the plan made of the open ones.
        output: folder of the run's checkpoints.
        optimizer: ``adamw_8bit`` or ``adamw``, as it was found to work here.
    """
    settings = recipe.training
    return {
        "output_dir": str(output),
        "max_steps": resolved.total_steps,
        "per_device_train_batch_size": resolved.batch_size,
        "per_device_eval_batch_size": recipe.eval.batch_size,
        "gradient_accumulation_steps": resolved.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.scheduler,
        "lr_scheduler_kwargs": scheduler_of(settings),
        "warmup_steps": resolved.warmup_steps,
        "optim": OPTIMIZERS[optimizer],
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.beta1,
        "adam_beta2": settings.beta2,
        "adam_epsilon": settings.epsilon,
        # With no bound nothing is clipped, but the norm is still measured.
        "max_grad_norm": settings.max_grad_norm or float("inf"),
        "bf16": resolved.compute_dtype == "bf16",
        "fp16": resolved.compute_dtype == "fp16",
        "use_cpu": resolved.device == "cpu",
        "seed": settings.seed,
        "data_seed": settings.seed,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": resolved.device == "cuda",
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "save_total_limit": None,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "push_to_hub": False,
    }
