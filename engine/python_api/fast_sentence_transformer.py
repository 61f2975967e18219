"""`FastSentenceTransformer`: load an embedding model, adapt it, save it. It is a `SentenceTransformer`
throughout: any trainer, loss and evaluator of sentence-transformers takes it."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from ..errors import WhetError
from ..methods.embedding.loading import adapt, freeze_unread, load_folder
from ..models.adapters import hold_trained_in_fp32
from ..models.families import family_of
from ..models.loading import DTYPES
from .checkpointing import start_checkpointing
from .fast import to_fast_encoder
from .load_options import (
    adapter_section,
    base_name,
    checkpointing_wanted,
    choose_precision,
    locate,
    refuse_adapter_options,
    set_aside,
    stored_quantisation,
    target_names,
)
from .loading import load_settings
from .notes import say
from .one_gpu import stay_on_one_gpu
from .sentence_saving import bind_saving
from .spellings import refuse_token
from .state import ModelState, remember, state_of

MODES = {"mean": "mean", "cls": "cls", "lasttoken": "last", "last": "last"}


class FastSentenceTransformer:
    """Loading, adapting and saving embedding models. Never instantiated."""

    @staticmethod
    def from_pretrained(
        model_name: str,
        max_seq_length: int | None = 512,
        dtype: torch.dtype | str | None = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        load_in_16bit: bool = True,
        full_finetuning: bool = False,
        token: str | None = None,
        device_map: str | dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        for_inference: bool = False,
        pooling_mode: str | None = None,
        revision: str | None = None,
        **given: Any,
    ) -> Any:
        """Load an embedding model as a `SentenceTransformer`.

        Args:
            model_name: a local folder (a model, or an adapter that names its base), or a hub id.
            max_seq_length: longest text in tokens; None keeps the model's own.
            dtype: of the computation; None is bf16 where the GPU has it, else fp16, and fp32 on a CPU.
            load_in_4bit, load_in_8bit: hold the base as nf4 or int8.
            load_in_16bit: hold the base in the type of the computation.
            full_finetuning: train all weights, held in fp32.
            token: refused; the hub's token comes from the environment.
            device_map: by default the one device there is.
            trust_remote_code: run Python code that ships with the model.
            for_inference: accepted; vectors are the same with and without it.
            pooling_mode: `mean`, `cls` or `lasttoken`, where the folder does not say.
            revision: hub branch, tag or commit.
            **given: older names that have no effect, each said aloud.

        Raises:
            WhetError: `model.*`, `python_api.precision`, `python_api.pooling`, `python_api.token`,
                `python_api.unknown_argument`.
        """
        refuse_token("token", token)
        set_aside(given, signature(FastSentenceTransformer.from_pretrained).parameters)
        pooling = "auto" if pooling_mode is None else MODES.get(pooling_mode)
        if pooling is None:
            raise WhetError(
                "python_api.pooling",
                f"pooling_mode={pooling_mode!r} is unknown.",
                f"Use one of {', '.join(MODES)}.",
            )
        folder, adapter = locate(model_name, revision, trust_remote_code)
        in_16bit = load_in_16bit and not (load_in_4bit or load_in_8bit or full_finetuning)
        stored = stored_quantisation(folder)
        held = choose_precision(load_in_4bit or None, load_in_8bit, in_16bit, full_finetuning, stored)
        settings = load_settings(held, dtype, device_map)
        source = adapter if adapter is not None and (adapter / "modules.json").is_file() else folder
        model = load_folder(source, settings, pooling=pooling, trust_remote_code=trust_remote_code)
        stay_on_one_gpu(model, settings.device)
        model.max_seq_length = max_seq_length or model.max_seq_length
        _prepare(model, folder, model_name, adapter, held, settings, trains=not for_inference)
        to_fast_encoder(model)
        return bind_saving(model)

    @staticmethod
    def get_peft_model(
        model: Any,
        r: int = 16,
        target_modules: Sequence[str] | str | None = None,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        bias: str = "none",
        use_gradient_checkpointing: bool | str | None = False,
        random_state: int = 3407,
        task_type: str = "FEATURE_EXTRACTION",
        modules_to_save: Sequence[str] | None = None,
        use_rslora: bool = False,
        use_dora: bool = False,
        **given: Any,
    ) -> Any:
        """Put a LoRA adapter on the encoder; its vectors stay the same until it has learned.

        Args:
            model: from :meth:`from_pretrained`.
            r: rank of the update.
            target_modules: names of linear layers; by default those of the model's family.
            lora_alpha: the update is scaled by alpha/r (rsLoRA: alpha/sqrt(r)).
            lora_dropout: on the adapter's input.
            bias: `none`, `all` or `lora_only`.
            use_gradient_checkpointing: `True` or `"unsloth"` recomputes activations.
            random_state: seed of the adapter's first weights.
            task_type: `FEATURE_EXTRACTION`; another is refused.
            modules_to_save: modules trained whole beside the adapter.
            use_rslora, use_dora: the kind of adapter.
            **given: as `FastLanguageModel.get_peft_model`'s: defaults pass, others are refused by name.

        Raises:
            WhetError: `adapter.*`, `python_api.adapter`, `python_api.task_type`,
                `python_api.unknown_argument`, `python_api.adapter_option`.
        """
        refuse_adapter_options(given, signature(FastSentenceTransformer.get_peft_model).parameters)
        if not str(task_type).endswith("FEATURE_EXTRACTION"):
            raise WhetError(
                "python_api.task_type",
                f"task_type={task_type!r} is not what an embedding model does.",
                'Use task_type="FEATURE_EXTRACTION", or leave it out.',
            )
        encoder = model[0].model
        own = family_of(encoder.config.model_type).target_modules
        targets = target_names(own if target_modules is None else target_modules)
        section = adapter_section(
            encoder, r, targets, lora_alpha, lora_dropout, bias, modules_to_save, use_rslora, use_dora
        )
        state = state_of(encoder)
        adapt(model, section, random_state, state.name if state else "")
        to_fast_encoder(model, aloud=True)
        if checkpointing_wanted(use_gradient_checkpointing):
            start_checkpointing(model[0].model)
        return bind_saving(model)

    @staticmethod
    def for_inference(model: Any) -> Any:
        """Switch to answering: no dropout."""
        return model.eval()

    @staticmethod
    def for_training(model: Any, use_gradient_checkpointing: bool | str | None = None) -> Any:
        """Switch back to training."""
        if checkpointing_wanted(use_gradient_checkpointing):
            start_checkpointing(model[0].model)
        return model.train()


def _prepare(
    model: Any, folder: Path, name: str, adapter: Path | None, held: str, settings: Any, *, trains: bool
) -> None:
    """Remember where the base is, and hold what trains in fp32."""
    encoder = model[0].model
    rounded = held if held in ("nf4", "int8") else None
    base, dtype = base_name(name, folder, adapter), DTYPES[settings.compute_dtype]
    remember(encoder, ModelState(folder, base, int(model.max_seq_length or 512), dtype, rounded))
    if adapter is not None and not isinstance(encoder, PeftModel):
        model[0].model = encoder = PeftModel.from_pretrained(encoder, str(adapter), is_trainable=trains)
    if held == "trained" or isinstance(encoder, PeftModel):
        hold_trained_in_fp32(model)
        freeze_unread(model)
    elif trains:
        say("All weights are frozen until get_peft_model; full_finetuning=True trains them all.")
        model.requires_grad_(False)
