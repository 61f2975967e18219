"""`FastModel`: any model of transformers, by the class of its task.

Causal language models take `FastLanguageModel`'s way, vision-language models `FastVisionModel`'s. Others
(classifiers, Whisper, sequence-to-sequence, CSM) train with transformers' own trainers; encoders under a head
run on the fast path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from ..errors import WhetError
from ..methods.tts.frames_job import beside_codec
from ..models.adapters import add_adapter, hold_trained_in_fp32
from ..models.families import Unsupported, family_of
from ..models.fast_path.encoders import apply_fast_encoder
from ..models.loading import DTYPES
from .checkpointing import pause_checkpointing, resume_checkpointing, start_checkpointing
from .fast_language_model import FastLanguageModel
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
from .model_classes import class_for, head_of, path_of, path_of_model
from .model_loading import Loaded, load_any, load_config, no_fp8
from .model_saving import bind_saving
from .notes import say
from .one_gpu import stay_on_one_gpu
from .spellings import refuse_token
from .state import ModelState, base_model, remember, state_of, update
from .whisper_settings import set_language


class FastModel:
    """Loading, adapting and switching models of any task. Never instantiated."""

    @staticmethod
    def from_pretrained(
        model_name: str,
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
        auto_model: Any = None,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        problem_type: str | None = None,
        whisper_language: str | None = None,
        whisper_task: str | None = None,
        **given: Any,
    ) -> tuple[Any, Any]:
        """Load a model and what prepares its inputs.

        Args:
            model_name: `demo`, a local folder (a model, or an adapter whose base is named in it), or a hub
                id.
            max_seq_length: longest row in tokens; None means the model's limit.
            dtype: of the computation; None is bf16 where the GPU has it, else fp16, and fp32 on a CPU.
            load_in_4bit, load_in_8bit, load_in_16bit, load_in_fp8: how the base is held. Without any, causal
                and vision-language models are held as nf4, all others in the type of the computation.
            full_finetuning: train all weights, held in fp32.
            token: refused; the hub's token comes from the environment.
            device_map: by default the one device there is.
            trust_remote_code: run Python code that ships with the model.
            use_gradient_checkpointing: for full fine-tuning; with an adapter `get_peft_model` decides.
            revision: hub branch, tag or commit.
            auto_model: transformers' class that loads it, e.g. `AutoModelForSequenceClassification` or
                `WhisperForConditionalGeneration`; by default the one that config.json names.
            num_labels, id2label, label2id, problem_type: of a classifier's new head.
            whisper_language: of what Whisper hears, by name or code.
            whisper_task: `transcribe` or `translate`.
            **given: older names that have no effect, each said aloud.

        Returns:
            `(model, tokenizer)`; `(model, processor)` for models that hear or see.

        Raises:
            WhetError: `model.*`, `python_api.auto_model`, `python_api.precision`, `python_api.token`,
                `python_api.whisper`, `python_api.labels`, `python_api.unknown_argument`.
        """
        refuse_token("token", token)
        set_aside(given, signature(FastModel.from_pretrained).parameters)
        folder, adapter = locate(model_name, revision, trust_remote_code)
        labels = _labels(num_labels, id2label, label2id) | {"problem_type": problem_type}
        named = adapter is not None and (adapter / "config.json").is_file()  # with the classes of its head
        config = load_config(adapter if adapter is not None and named else folder, trust_remote_code, labels)
        kind = class_for(auto_model, config, folder)
        path = path_of(kind, config)
        if path != "other":
            unused = labels | {"whisper_language": whisper_language, "whisper_task": whisper_task}
            _refuse_unused(path, unused)
            return _fast_class(path).from_pretrained(
                model_name,
                max_seq_length=max_seq_length,
                dtype=dtype,
                load_in_4bit=load_in_4bit,
                load_in_8bit=load_in_8bit,
                load_in_16bit=load_in_16bit,
                full_finetuning=full_finetuning,
                device_map=device_map,
                trust_remote_code=trust_remote_code,
                use_gradient_checkpointing=use_gradient_checkpointing,
                revision=revision,
                **_fp8_option(path, load_in_fp8),
            )
        in_4bit, stored = bool(load_in_4bit), stored_quantisation(folder)
        held = choose_precision(in_4bit, load_in_8bit, load_in_16bit, full_finetuning, stored, load_in_fp8)
        settings = load_settings(held, dtype, device_map)
        loaded = load_any(folder, kind, config, settings, trust_remote_code)
        stay_on_one_gpu(loaded.model, settings.device)
        set_language(loaded, whisper_language, whisper_task)
        state = ModelState(
            folder,
            base_name(model_name, folder, adapter),
            max_seq_length or 2048,
            DTYPES[settings.compute_dtype],
            held if held in ("nf4", "int8") else None,
            checkpointing_wanted(use_gradient_checkpointing) if full_finetuning else None,
            loaded.heads,
        )
        model = _prepared(loaded, state, adapter, whole=full_finetuning)
        return bind_saving(model, loaded.processor), loaded.processor

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
        task_type: str | None = None,
        modules_to_save: Sequence[str] | None = None,
        use_rslora: bool = False,
        use_dora: bool = False,
        **given: Any,
    ) -> Any:
        """Put a LoRA adapter on a model from :meth:`from_pretrained`; the head of a classifier trains whole.

        Args:
            model: the base model.
            r: rank of the update.
            target_modules: names of linear layers; by default those of the model's family, else all but the
                head.
            lora_alpha: the update is scaled by alpha/r (rsLoRA: alpha/sqrt(r)).
            lora_dropout: on the adapter's input.
            bias: `none`, `all` or `lora_only`.
            use_gradient_checkpointing: `True` or `"unsloth"` recomputes activations.
            random_state: seed of the adapter's first weights.
            task_type: PEFT's name of the task; by default the model's own.
            modules_to_save: modules trained whole beside the adapter and the head.
            use_rslora, use_dora: the kind of adapter.
            **given: as `FastLanguageModel.get_peft_model`'s: defaults pass, others are refused by name.

        Raises:
            WhetError: `adapter.*`, `python_api.adapter`, `python_api.task_type`,
                `python_api.unknown_argument`, `python_api.adapter_option`.
        """
        options: dict[str, Any] = {
            "r": r,
            "target_modules": target_modules,
            "lora_alpha": lora_alpha,
            "lora_dropout": lora_dropout,
            "bias": bias,
            "use_gradient_checkpointing": use_gradient_checkpointing,
            "random_state": random_state,
            "modules_to_save": modules_to_save,
            "use_rslora": use_rslora,
            "use_dora": use_dora,
        }
        path = path_of_model(base_model(model))
        if path != "other":
            named = {} if task_type is None else {"task_type": task_type}
            return _fast_class(path).get_peft_model(model, **options, **named, **given)
        refuse_adapter_options(given, signature(FastModel.get_peft_model).parameters)
        state, task = state_of(model), head_of(model)
        _check_task(task_type, task)
        heads = state.heads if state else ()
        saved = list(dict.fromkeys([*(modules_to_save or ()), *heads]))
        targets = _targets(model, target_modules)
        section = adapter_section(
            model, r, targets, lora_alpha, lora_dropout, bias, saved, use_rslora, use_dora
        )
        model.requires_grad_(False)
        adapted = add_adapter(model, section, random_state, name=state.name if state else "", task=task)
        wanted = checkpointing_wanted(use_gradient_checkpointing)
        update(adapted, gradient_checkpointing=wanted)
        _to_fast_encoder(adapted, state)
        if wanted:
            start_checkpointing(adapted, through_inputs=False)
        return bind_saving(adapted, model.whet_processor)

    @staticmethod
    def for_inference(model: Any) -> Any:
        """Switch to answering: no dropout, no recomputing, keys and values kept."""
        base = base_model(model)
        if path_of_model(base) != "other":
            return _fast_class(path_of_model(base)).for_inference(model)
        pause_checkpointing(model)
        if base.can_generate():
            base.config.use_cache = True
            base.generation_config.use_cache = True
        return model.eval()

    @staticmethod
    def for_training(model: Any, use_gradient_checkpointing: bool | str | None = None) -> Any:
        """Switch back to training: dropout on, gradient checkpointing as it was asked for."""
        path = path_of_model(base_model(model))
        if path != "other":
            return _fast_class(path).for_training(model, use_gradient_checkpointing)
        asked = checkpointing_wanted(use_gradient_checkpointing)
        resume_checkpointing(model, asked, through_inputs=False)
        return model.train()


def _fast_class(path: str) -> Any:
    if path == "language":
        return FastLanguageModel
    from .fast_vision_model import FastVisionModel

    return FastVisionModel


def _fp8_option(path: str, wanted: bool) -> dict[str, bool]:
    """For `FastLanguageModel`, which alone has it. Raises WhetError ``python_api.precision``."""
    if path == "language":
        return {"load_in_fp8": wanted}
    if wanted:
        raise no_fp8()
    return {}


def _labels(
    count: int | None, names: Mapping[int, str] | None, numbers: Mapping[str, int] | None
) -> dict[str, Any]:
    """Classes as a configuration takes them: any one of the three says the others.

    Raises WhetError ``python_api.labels`` where they say different things.
    """
    turned = None if numbers is None else {number: name for name, number in numbers.items()}
    names = turned if names is None else dict(names)
    if names is None:
        return {"num_labels": count}
    if turned not in (None, names) or count not in (None, len(names)):
        raise WhetError(
            "python_api.labels",
            f"num_labels={count}, id2label={names} and label2id={numbers} are not about the same classes.",
            "Pass one of them; it says the others.",
        )
    return {"id2label": dict(names), "label2id": {name: number for number, name in names.items()}}


def _prepared(loaded: Loaded, state: ModelState, adapter: Path | None, *, whole: bool) -> Any:
    """What trains in fp32, all else frozen; a saved adapter put back."""
    model = loaded.model
    if head_of(model) is not None:
        tokenizer = loaded.tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # Decoders read the class off the last token that is not this one.
        model.config.pad_token_id = tokenizer.pad_token_id
    remember(model, state)
    model.max_seq_length = state.max_seq_length
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
        hold_trained_in_fp32(model)
        _to_fast_encoder(model, state)
    elif whole:
        hold_trained_in_fp32(model)
        if state.gradient_checkpointing:
            start_checkpointing(model)
    else:
        say("All weights are frozen until get_peft_model; full_finetuning=True trains them all.")
        model.requires_grad_(False)
    return model


def _targets(model: Any, given: Sequence[str] | str | None) -> Any:
    kind = base_model(model).config.model_type
    family = family_of(kind)
    if kind == "csm":
        return beside_codec(model, "all-linear" if given is None else target_names(given))
    if given is not None:
        return target_names(given)
    decodes = not isinstance(family.capabilities.get("sft"), Unsupported)
    return (
        "all-linear" if not family.model_types else target_names(None if decodes else family.target_modules)
    )


def _to_fast_encoder(model: Any, state: ModelState | None) -> None:
    """Let an encoder under a head run on whet's kernels, or say why it does not."""
    if state is None or family_of(base_model(model).config.model_type).encoder is None:
        return
    report = apply_fast_encoder(model, state.dtype)
    if not report.complete:
        say(f"This model trains on the plain path, which is slower: {report}.")


def _check_task(given: str | None, own: str | None) -> None:
    named = None if given is None else str(given).rpartition(".")[2]
    if named not in (None, own) and not (own is None and named in ("SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")):
        raise WhetError(
            "python_api.task_type",
            f"task_type={given!r} is not what this model does.",
            f"Use task_type={own!r}, or leave it out.",
        )


def _refuse_unused(path: str, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value is not None:
            raise WhetError(
                "python_api.auto_model",
                f"{name}={value!r} says nothing to a {path} model.",
                "Pass the class that it is meant for, e.g. auto_model=AutoModelForSequenceClassification.",
            )
