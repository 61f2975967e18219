"""`FastVisionModel`: load a vision-language model, adapt chosen parts of it, train and answer."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel

from ..errors import WhetError
from ..methods.vision.loading import adapt, load_seeing, train_parts
from ..models.adapters import hold_trained_in_fp32
from .checkpointing import pause_checkpointing, resume_checkpointing
from .load_options import (
    adapter_section,
    base_name,
    checkpointing_wanted,
    choose_precision,
    locate,
    refuse_adapter_options,
    set_aside,
    stored_quantisation,
)
from .loading import load_settings
from .one_gpu import stay_on_one_gpu
from .seeing_processor import SeeingProcessor
from .seeing_saving import bind_seeing_saving
from .spellings import refuse_token
from .state import ModelState, base_model, remember, state_of, update

ALL_ON = SimpleNamespace(
    finetune_vision_layers=True,
    finetune_language_layers=True,
    finetune_attention_modules=True,
    finetune_mlp_modules=True,
)


class FastVisionModel:
    """Loading, adapting and switching models that see. Never instantiated."""

    @staticmethod
    def from_pretrained(
        model_name: str,
        max_seq_length: int | None = 2048,
        dtype: torch.dtype | str | None = None,
        load_in_4bit: bool | None = None,
        load_in_8bit: bool = False,
        load_in_16bit: bool = False,
        full_finetuning: bool = False,
        token: str | None = None,
        device_map: str | dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        use_gradient_checkpointing: bool | str | None = "unsloth",
        revision: str | None = None,
        **given: Any,
    ) -> tuple[Any, Any]:
        """Load a model, and what prepares texts and images for it.

        Args:
            model_name: a local folder (a model, or an adapter whose base is named in it), or a hub id.
            max_seq_length: longest training row in tokens, images included.
            dtype: of the computation; None is bf16 where the GPU has it, else fp16, and fp32 on a CPU.
            load_in_4bit: hold the language model as nf4 (QLoRA); the image encoder stays in 16 bits. By
                default yes, unless another choice is made or the checkpoint is already quantised.
            load_in_8bit: the same with int8.
            load_in_16bit: hold the base in 16 bits.
            full_finetuning: train all weights; nothing is quantised.
            token: refused; the hub's token comes from the environment.
            device_map: as transformers takes it; by default the one device there is.
            trust_remote_code: run Python code that ships with the model.
            use_gradient_checkpointing: recompute activations; with an adapter `get_peft_model` decides.
            revision: hub branch, tag or commit.
            **given: older names that have no effect, each said aloud.

        Returns:
            `(model, processor)`, the latter a :class:`.seeing_processor.SeeingProcessor`.

        Raises:
            WhetError: `vision.family` for a model that sees no images or that whet does not know,
                `model.*`, `python_api.precision`, `python_api.token`, `python_api.unknown_argument`.
        """
        refuse_token("token", token)
        set_aside(given, signature(FastVisionModel.from_pretrained).parameters)
        folder, adapter = locate(model_name, revision, trust_remote_code)
        stored = stored_quantisation(folder)
        precision = choose_precision(load_in_4bit, load_in_8bit, load_in_16bit, full_finetuning, stored)
        settings = load_settings(precision, dtype, device_map)
        seeing = load_seeing(folder, settings, trust_remote_code=trust_remote_code)
        handle = seeing.handle
        stay_on_one_gpu(handle.model, settings.device)
        model, limit = handle.model, handle.positions
        length = max_seq_length or limit or 2048
        checkpointing = checkpointing_wanted(use_gradient_checkpointing)
        rounded = precision if precision in ("nf4", "int8") else None
        name = base_name(model_name, folder, adapter)
        remember(model, ModelState(folder, name, length, handle.dtype, rounded, checkpointing))
        model.max_seq_length = length
        if full_finetuning:
            train_parts(model, ALL_ON)
            hold_trained_in_fp32(model)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
            hold_trained_in_fp32(model)
        return bind_seeing_saving(model), SeeingProcessor.of(seeing)

    @staticmethod
    def get_peft_model(
        model: Any,
        finetune_vision_layers: bool = True,
        finetune_language_layers: bool = True,
        finetune_attention_modules: bool = True,
        finetune_mlp_modules: bool = True,
        r: int = 16,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        bias: str = "none",
        target_modules: Sequence[str] | str | None = None,
        use_gradient_checkpointing: bool | str | None = "unsloth",
        random_state: int = 3407,
        modules_to_save: Sequence[str] | None = None,
        use_rslora: bool = False,
        use_dora: bool = False,
        **given: Any,
    ) -> Any:
        """Put a LoRA adapter on the chosen layers of a model from :meth:`from_pretrained`.

        Args:
            model: the base model.
            finetune_vision_layers: the image encoder, and the projector behind it.
            finetune_language_layers: the language model.
            finetune_attention_modules: of these the attention layers.
            finetune_mlp_modules: of these the MLPs, the projector's layers among them.
            r: rank of the update.
            lora_alpha: the update is scaled by alpha/r (rsLoRA: alpha/sqrt(r)).
            lora_dropout: on the adapter's input.
            bias: `none`, `all` or `lora_only`.
            target_modules: names of linear layers, of those that the switches choose; by default all.
            use_gradient_checkpointing: `True`, or `"unsloth"`, which means the same here; `False` keeps
                activations.
            random_state: seed of the adapter's first weights.
            modules_to_save: modules trained whole beside the adapter.
            use_rslora: rank-stabilised scaling (arXiv:2312.03732).
            use_dora: weight-decomposed adapters (arXiv:2402.09353).
            **given: see :meth:`FastLanguageModel.get_peft_model`.

        Raises:
            WhetError: `python_api.nothing_trains` with all switches of a kind off, `adapter.no_target`,
                `python_api.adapter`, `python_api.unknown_argument`, `python_api.adapter_option`.
        """
        refuse_adapter_options(given, signature(FastVisionModel.get_peft_model).parameters)
        switches = SimpleNamespace(
            finetune_vision_layers=finetune_vision_layers,
            finetune_language_layers=finetune_language_layers,
            finetune_attention_modules=finetune_attention_modules,
            finetune_mlp_modules=finetune_mlp_modules,
        )
        _refuse_nothing(switches)
        targets: Any = "all-linear" if target_modules is None else target_modules
        if targets != "all-linear":
            targets = [targets] if isinstance(targets, str) else list(targets)
        section = adapter_section(
            model, r, targets, lora_alpha, lora_dropout, bias, modules_to_save, use_rslora, use_dora
        )
        checkpointing = checkpointing_wanted(use_gradient_checkpointing)
        state = state_of(model)
        adapted = adapt(model, section, switches, random_state, base=state.name if state else "")
        update(adapted, gradient_checkpointing=checkpointing)
        return bind_seeing_saving(adapted)

    @staticmethod
    def for_inference(model: Any) -> Any:
        """Switch to answering: no dropout, no recomputing, with a cache; :meth:`for_training` undoes it."""
        pause_checkpointing(model)
        base = base_model(model)
        base.config.get_text_config().use_cache = True
        base.generation_config.use_cache = True
        return model.eval()

    @staticmethod
    def for_training(model: Any, use_gradient_checkpointing: bool | str | None = None) -> Any:
        """Switch back to training: dropout on, gradient checkpointing as it was asked for."""
        resume_checkpointing(model, checkpointing_wanted(use_gradient_checkpointing))
        return model.train()


def _refuse_nothing(switches: SimpleNamespace) -> None:
    for one, other in (
        ("finetune_vision_layers", "finetune_language_layers"),
        ("finetune_attention_modules", "finetune_mlp_modules"),
    ):
        if not (getattr(switches, one) or getattr(switches, other)):
            raise WhetError(
                "python_api.nothing_trains",
                f"{one}=False and {other}=False leave nothing to train.",
                "Set one of them to True.",
            )
