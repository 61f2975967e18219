"""Which of TRL's trainers a variant has, and what it must be told: every choice stated."""

from __future__ import annotations

from typing import Any

from trl import GRPOConfig, RLOOConfig

from .section import GRPOSection
from .trainers import GroupTrainer, LeaveOneOutTrainer, PolicyTrainer


def trainer_of(
    section: GRPOSection, shared: dict[str, Any], weights: list[float], dropout: bool
) -> tuple[type[GroupTrainer], Any]:
    """Trainer and configuration.

    Args:
        section: the recipe's.
        shared: what transformers' trainer is told.
        weights: of the rewards.
        dropout: whether the recipe wants dropout; otherwise the model's own is off, since ratios of
            likelihoods are otherwise noise.
    """
    knobs = section.knobs
    options: dict[str, Any] = {
        **shared,
        "num_generations": section.num_generations,
        "max_completion_length": section.max_completion_length,
        "temperature": section.temperature,
        "top_p": section.top_p,
        "top_k": section.top_k,
        "min_p": section.min_p,
        "repetition_penalty": section.repetition_penalty,
        "num_iterations": section.num_iterations,
        "steps_per_generation": section.micro_batches_a_generation(shared["gradient_accumulation_steps"]),
        "epsilon": knobs.epsilon,
        "epsilon_high": knobs.epsilon_high,
        "mask_truncated_completions": knobs.mask_truncated,
        "reward_weights": weights,
        "shuffle_dataset": True,
        "disable_dropout": not dropout,
        "remove_unused_columns": False,
        "beta": 0.0,  # with it TRL would copy the adapter; ours, switched off, is the model as it began
        **vllm_options(section),
    }
    if section.variant == "rloo":
        return LeaveOneOutTrainer, RLOOConfig(**options)
    return PolicyTrainer, GRPOConfig(
        **options,
        loss_type=knobs.loss,
        scale_rewards=knobs.scale_rewards,
        importance_sampling_level=knobs.importance,
    )


def vllm_options(section: GRPOSection) -> dict[str, Any]:
    """vLLM in this process, on the weights as they are now, asleep between uses."""
    if section.generation != "vllm":
        return {"use_vllm": False}
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_enable_sleep_mode": True,
        "vllm_gpu_memory_utilization": section.vllm_memory,
    }
