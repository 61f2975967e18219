"""TRL's GRPO and RLOO trainers, taking every generation's spellings, answering on the fast path, silently."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import trl
from peft import PeftModel

from ..errors import WhetError
from ..methods.fast_head import put_fast_head
from ..methods.grpo.rollouts import written
from ..methods.sft.fast_choice import mixed_reason
from ..models.fast_path import apply_fast_path, program_of
from ..rewards.in_process import checked_functions
from .load_options import has_vllm
from .notes import say
from .older_trainers import OlderTrainer
from .precision import resolve_mixed_precision, resolve_optimizer
from .preference_classes import drop_copy
from .spellings import translate_config
from .state import state_of

MOVED = ("max_prompt_length", "max_completion_length", "num_generations", "beta")
"""Arguments that belong to the configuration."""
WITHOUT_EFFECT = {
    "vllm_sampling_params": "sampling follows temperature, top_p, top_k and min_p",
    "vllm_device": "vLLM shares the GPU that trains",
    "vllm_dtype": "vLLM computes in the model's type",
}


def PatchFastRL(*args: Any, **kwargs: Any) -> None:
    """Nothing: there is nothing to patch. Accepted so that scripts run as they are."""


def rl_arguments(owner: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    """Today's arguments of a configuration class from any generation's, with the hardware's choices made.

    Args:
        owner: the class of TRL.
        given: keyword arguments as the script wrote them, without ``max_prompt_length``.

    Raises:
        WhetError: ``python_api.vllm`` for ``use_vllm`` without vLLM; as :func:`.spellings.translate_config`.
    """
    arguments = dict(given)
    for name, reason in WITHOUT_EFFECT.items():
        if arguments.pop(name, None) is not None:
            say(f"{name}= has no effect: {reason}.")
    arguments = translate_config(
        arguments, [field.name for field in fields(owner) if field.init], owner=owner.__name__
    )
    if arguments.get("use_vllm") and not has_vllm():
        raise WhetError(
            "python_api.vllm",
            "use_vllm=True, but vLLM is not installed.",
            "Install it (`pip install vllm`, on a machine with an NVIDIA GPU), or leave use_vllm out: whet's "
            "own decoding answers on the weights that train.",
        )
    bf16, fp16 = resolve_mixed_precision(arguments.get("bf16"), arguments.get("fp16"))
    arguments |= {"bf16": bf16, "fp16": fp16}
    if "optim" in arguments:
        arguments["optim"] = resolve_optimizer(str(getattr(arguments["optim"], "value", arguments["optim"])))
    # A NaN that is logged as 0.0 looks like perfect learning.
    arguments.setdefault("logging_nan_inf_filter", False)
    return arguments


@dataclass(init=False)
class GRPOConfig(trl.GRPOConfig):
    """TRL's, with older spellings and ``max_prompt_length``; see :func:`rl_arguments`."""

    def __init__(
        self, output_dir: str | None = None, *, max_prompt_length: int | None = None, **given: Any
    ) -> None:
        self.explicit, self.max_prompt_length = dict(given), max_prompt_length
        super().__init__(output_dir=output_dir, **rl_arguments(trl.GRPOConfig, given))


@dataclass(init=False)
class RLOOConfig(trl.RLOOConfig):
    """TRL's, with older spellings and ``max_prompt_length``; see :func:`rl_arguments`."""

    def __init__(
        self, output_dir: str | None = None, *, max_prompt_length: int | None = None, **given: Any
    ) -> None:
        self.explicit, self.max_prompt_length = dict(given), max_prompt_length
        super().__init__(output_dir=output_dir, **rl_arguments(trl.RLOOConfig, given))


class _Rewarded(OlderTrainer):
    """Goes before one of TRL's trainers that learn from rewards among a class's bases.

    Args:
        model: loaded, or its name.
        reward_funcs: one or several: ``fn(completions, **kwargs)`` or ``fn(prompts, completions, answer,
            **kwargs)`` with the data's columns by name, each returning a number a completion.
        positional, given: as :class:`.older_trainers.OlderTrainer`.

    Raises:
        WhetError: ``python_api.groups`` where ``num_generations`` does not divide a generation's answers.
    """

    moved = MOVED
    output_dir = "rewards"

    def __init__(self, model: Any = None, reward_funcs: Any = None, *positional: Any, **given: Any) -> None:
        super().__init__(model, checked_functions(reward_funcs), *positional, **given)
        self._to_fast_path()

    def _configure(self, config: Any, model: Any, moved: dict[str, Any]) -> None:
        self.max_prompt_length = moved.pop("max_prompt_length", None)
        if self.max_prompt_length is None and isinstance(config, GRPOConfig | RLOOConfig):
            self.max_prompt_length = config.max_prompt_length
        super()._configure(config, model, moved)
        if config.generation_batch_size % config.num_generations:
            raise WhetError(
                "python_api.groups",
                f"{config.generation_batch_size} answers are written at once, which do not divide into "
                f"groups of num_generations={config.num_generations}.",
                "Set per_device_train_batch_size and gradient_accumulation_steps so that their product is a "
                "multiple of it.",
            )
        state = None if model is None or isinstance(model, str) else state_of(model)
        if state is not None and state.fast_inference and has_vllm():
            config.use_vllm, config.vllm_mode, config.vllm_enable_sleep_mode = True, "colocate", True
            config.vllm_gpu_memory_utilization = (
                state.gpu_memory_utilization or config.vllm_gpu_memory_utilization
            )

    def _to_fast_path(self) -> None:
        """Answers and log-probabilities come from the program of a model that is on the fast path."""
        own: Any = self
        model = own.model
        if isinstance(model, PeftModel):
            drop_copy(model)
        program = program_of(model)
        if program is None:
            return
        if not program.is_current():
            apply_fast_path(model, program.dtype)
        if mixed_reason(own.args, program.dtype) is None and not own.aux_loss_enabled:
            put_fast_head(model, ("log_probs", "entropy"), own.temperature)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """As TRL's; of a prompt longer than ``max_prompt_length`` the end is kept."""
        base: Any = super()
        ids, images, more = base._tokenize_prompts(prompts)
        if self.max_prompt_length is not None and images is None:
            ids = [one[-self.max_prompt_length :] for one in ids]
        return ids, images, more

    def _write(self, prompt_ids: list[list[int]]) -> list[list[int]] | None:
        """Ids of an answer to each prompt; None where the model is not on the fast path, or another engine
        answers."""
        own: Any = self
        program = program_of(own.model)
        if own.use_vllm or own.use_transformers_continuous_batching or program is None:
            return None
        return written(own.model, program.dtype, prompt_ids, own.generation_config)


class GRPOTrainer(_Rewarded, trl.GRPOTrainer):
    """TRL's `GRPOTrainer`; on a model from `FastLanguageModel` it answers on whet's kernels."""

    config_class = GRPOConfig

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As TRL's, on the fast path."""
        found = None if images or multimodal_fields else self._write(prompt_ids)
        if found is not None:
            return found, None
        return super()._generate_single_turn(prompt_ids, images, multimodal_fields, *args, **kwargs)


class RLOOTrainer(_Rewarded, trl.RLOOTrainer):
    """TRL's `RLOOTrainer`; on a model from `FastLanguageModel` it answers on whet's kernels."""

    config_class = RLOOConfig

    def _generate_single_turn(self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any) -> Any:
        """As TRL's, on the fast path."""
        found = None if images or multimodal_fields else self._write(prompt_ids)
        if found is not None:
            return found
        return super()._generate_single_turn(prompt_ids, images, multimodal_fields)
