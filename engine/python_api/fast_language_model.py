"""`FastLanguageModel`: load a causal language model, adapt it, switch between training and answering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from peft import PeftModel

from ..adapted import moved_to_whole
from ..models.adapters import add_adapter, hold_trained_in_fp32
from ..models.loading import load_model
from .answering import start_answering, stop_answering
from .checkpointing import pause_checkpointing, resume_checkpointing
from .fast import to_fast_path
from .load_options import (
    adapter_section,
    base_name,
    checkpointing_wanted,
    choose_precision,
    locate,
    refuse_adapter_options,
    second_engine,
    set_aside,
    stored_quantisation,
    target_names,
)
from .loading import load_settings
from .notes import say
from .one_gpu import stay_on_one_gpu
from .saving import bind_saving
from .spellings import refuse_token
from .state import ModelState, base_model, remember, state_of, update


class FastLanguageModel:
    """Loading, adapting and switching causal language models. Never instantiated."""

    @staticmethod
    def from_pretrained(
        model_name: str = "demo",
        max_seq_length: int | None = 2048,
        dtype: torch.dtype | str | None = None,
        load_in_4bit: bool | None = None,
        load_in_8bit: bool = False,
        load_in_16bit: bool = False,
        load_in_fp8: bool = False,
        full_finetuning: bool = False,
        token: str | None = None,
        device_map: str | dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        use_gradient_checkpointing: bool | str | None = "unsloth",
        revision: str | None = None,
        **given: Any,
    ) -> tuple[Any, Any]:
        """Load a model and its tokenizer.

        Args:
            model_name: `demo`, a local folder (a model, or an adapter whose base is named in it), or a hub
                id.
            max_seq_length: longest training row in tokens; the trainer's default. None means the model's
                limit.
            dtype: of the computation; None is bf16 where the GPU has it, else fp16, and fp32 on a CPU.
            load_in_4bit: hold the base as nf4 (QLoRA). By default yes, unless another choice is made or the
                checkpoint is already quantised, which loads as it is.
            load_in_8bit: hold the base as int8.
            load_in_16bit: hold the base in 16 bits.
            load_in_fp8: hold the base as row-scaled FP8, and multiply in FP8 where the GPU can.
            full_finetuning: train all weights; nothing is quantised.
            token: refused; the hub's token comes from the environment.
            device_map: as transformers takes it; by default the one device there is.
            trust_remote_code: run Python code that ships with the model.
            use_gradient_checkpointing: for full fine-tuning; with an adapter `get_peft_model` decides.
            revision: hub branch, tag or commit.
            **given: older names that have no effect, each said aloud.

        Returns:
            `(model, tokenizer)`.

        Raises:
            WhetError: `model.not_found` and others of :func:`..models.locate.resolve_model`,
                `python_api.precision` for contradicting load_in_* choices, `python_api.token`,
                `python_api.unknown_argument`.
        """
        refuse_token("token", token)
        fast_inference, share = second_engine(given)
        set_aside(given, signature(FastLanguageModel.from_pretrained).parameters)
        folder, adapter = locate(model_name, revision, trust_remote_code)
        quantised = stored_quantisation(folder)
        precision = choose_precision(
            load_in_4bit, load_in_8bit, load_in_16bit, full_finetuning, quantised, load_in_fp8
        )
        settings = load_settings(precision, dtype, device_map)
        handle = load_model(folder, settings, trust_remote_code=trust_remote_code)
        model, tokenizer = handle.model, handle.tokenizer
        stay_on_one_gpu(model, settings.device)
        limit = handle.positions
        length = max_seq_length or limit or 2048
        if limit is not None and length > limit:
            say(f"max_seq_length={length} is beyond the {limit} positions this model was trained with.")
        checkpointing = checkpointing_wanted(use_gradient_checkpointing) if full_finetuning else None
        rounded = precision if precision in ("nf4", "int8", "fp8") else None
        name = base_name(model_name, folder, adapter)
        state = ModelState(folder, name, length, handle.dtype, rounded, checkpointing)
        remember(model, replace(state, fast_inference=fast_inference, gpu_memory_utilization=share))
        model.max_seq_length = length
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
            hold_trained_in_fp32(model)
            checkpointing = checkpointing_wanted(use_gradient_checkpointing)
            update(model, gradient_checkpointing=checkpointing)
            to_fast_path(model, checkpointing)
        return bind_saving(model), tokenizer

    @staticmethod
    def get_peft_model(
        model: Any,
        r: int = 16,
        target_modules: Sequence[str] | str | None = None,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        bias: str = "none",
        use_gradient_checkpointing: bool | str | None = "unsloth",
        random_state: int = 3407,
        modules_to_save: Sequence[str] | None = None,
        use_rslora: bool = False,
        use_dora: bool = False,
        **given: Any,
    ) -> Any:
        """Put a LoRA adapter on a model from :meth:`from_pretrained`, and the model on the fast path.

        Args:
            model: the base model.
            r: rank of the update.
            target_modules: names of linear layers; by default all seven of a decoder layer. `embed_tokens`
                and `lm_head` here are trained whole instead (`modules_to_save`), said aloud.
            lora_alpha: the update is scaled by alpha/r (rsLoRA: alpha/sqrt(r)).
            lora_dropout: on the adapter's input.
            bias: `none`, `all` or `lora_only`.
            use_gradient_checkpointing: `True`, or `"unsloth"`, which means the same here; `False` keeps
                activations.
            random_state: seed of the adapter's first weights.
            modules_to_save: modules trained whole beside the adapter.
            use_rslora: rank-stabilised scaling (arXiv:2312.03732).
            use_dora: weight-decomposed adapters (arXiv:2402.09353).
            **given: `layers_to_transform`, `layers_pattern`, `init_lora_weights`, `loftq_config`,
                `task_type`, `max_seq_length`: defaults pass, others are refused by name.

        Raises:
            WhetError: `adapter.*` of :mod:`..models.adapters`, `python_api.full_finetuning` for a model
                that already has an adapter, `python_api.unknown_argument`, `python_api.adapter_option`.
        """
        refuse_adapter_options(given, signature(FastLanguageModel.get_peft_model).parameters)
        targets = target_names(target_modules)
        section = adapter_section(
            model, r, targets, lora_alpha, lora_dropout, bias, modules_to_save, use_rslora, use_dora
        )
        if moved := moved_to_whole(section):
            say(f"{' and '.join(moved)} in target_modules: trained whole, not by an adapter.")
        checkpointing = checkpointing_wanted(use_gradient_checkpointing)
        state = state_of(model)
        adapted = add_adapter(model, section, random_state, name=state.name if state else "")
        update(adapted, gradient_checkpointing=checkpointing)
        to_fast_path(adapted, checkpointing)
        return bind_saving(adapted)

    @staticmethod
    def for_inference(model: Any) -> Any:
        """Switch to answering: no dropout, no recomputing, and `generate` on whet's kernels.

        `model.generate` takes and returns what transformers' own does (and runs that, with a warning, for
        what the fast one does not do); :meth:`for_training` undoes it.
        """
        base = base_model(model)
        pause_checkpointing(model)
        base.config.use_cache = True
        base.generation_config.use_cache = True
        start_answering(model.eval())
        return model

    @staticmethod
    def for_training(model: Any, use_gradient_checkpointing: bool | str | None = None) -> Any:
        """Switch back to training: dropout on, gradient checkpointing as it was asked for."""
        stop_answering(model)
        resume_checkpointing(model, checkpointing_wanted(use_gradient_checkpointing))
        return model.train()
