"""What the arguments of `FastLanguageModel` mean, decided before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel

from ..errors import WhetError
from ..models.families.descriptor import LINEAR_NAMES
from ..models.locate import adapter_base, resolve_model
from ..models.own_files import check_adapter
from ..recipe import AdapterSection
from .notes import say
from .spellings import refuse_unknown

Held = Literal["16bit", "nf4", "int8", "fp8", "stored", "trained"]
"""How the base is held: `stored` as a quantised checkpoint says itself, `trained` as fp32 masters."""

_ENGINE = "it is for a second inference engine beside the model, which fast_inference=True asks for"
LOAD_WITHOUT_EFFECT = {
    "fix_tokenizer": "the tokenizer is taken as it is",
    "use_exact_model_name": "names are never replaced by other repositories",
    "gpu_memory_utilization": _ENGINE,
    "float8_kv_cache": _ENGINE,
    "max_lora_rank": _ENGINE,
    "disable_log_stats": _ENGINE,
    "unsloth_vllm_standby": _ENGINE,
    "random_state": "loading draws no random numbers",
    "resize_model_vocab": "the vocabulary stays as it is",
    "rope_scaling": "positions follow the model's own config.json",
}

ADAPTER_DEFAULTS: dict[str, Any] = {
    "layers_to_transform": None,
    "layers_pattern": None,
    "init_lora_weights": True,
    "loftq_config": None,
    "task_type": "CAUSAL_LM",
    "max_seq_length": None,
    "temporary_location": None,
    "finetune_vision_layers": False,
    "finetune_language_layers": True,
    "finetune_attention_modules": True,
    "finetune_mlp_modules": True,
}
_HARMLESS = ("max_seq_length", "temporary_location")


def locate(model_name: str, revision: str | None, code: bool = False) -> tuple[Path, Path | None]:
    """`(base model folder, adapter folder)`; the second is None for a plain model.

    `code` also fetches the base's own Python files.

    Raises:
        WhetError: `model.not_found` and others of :func:`resolve_model`; `model.no_base` for an adapter
            that does not name its base, `model.pickled` and `model.link` of :func:`check_adapter`.
    """
    local = Path(model_name).expanduser()
    # An adapter with a head has a config.json beside it, which names the classes.
    whole = (local / "config.json").is_file() and any(local.glob("model*.safetensors"))
    if whole or not (local / "adapter_config.json").is_file():
        return resolve_model(model_name, revision, weights=True, code=code), None
    check_adapter(local)
    return resolve_model(adapter_base(local), revision, weights=True, code=code), local.absolute()


def base_name(model_name: str, folder: Path, adapter: Path | None) -> str:
    """What a saved adapter calls its base: the hub id, so that it loads elsewhere, or the local folder."""
    is_hub_id = adapter is None and model_name != "demo" and not Path(model_name).expanduser().is_dir()
    return model_name if is_hub_id else str(folder)


def stored_quantisation(folder: Path) -> str | None:
    """The `quant_method` of a checkpoint that is already quantised, else None."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored = config.get("quantization_config")
    return stored.get("quant_method", "unknown") if stored else None


def choose_precision(
    in_4bit: bool | None,
    in_8bit: bool,
    in_16bit: bool,
    full_finetuning: bool,
    stored: str | None,
    in_fp8: bool = False,
) -> Held:
    """One way of holding the base from five switches and what the checkpoint is.

    Raises:
        WhetError: `python_api.precision` for more than one switch, or full fine-tuning of a quantised
            checkpoint.
    """
    switches = {"4bit": in_4bit, "8bit": in_8bit, "16bit": in_16bit, "fp8": in_fp8}
    chosen = [name for name, on in switches.items() if on]
    if len(chosen) > 1:
        names = " and ".join(f"load_in_{name}=True" for name in chosen)
        raise WhetError("python_api.precision", f"{names} contradict each other.", "Keep one.")
    if full_finetuning:
        if stored:
            raise WhetError(
                "python_api.precision",
                f"full_finetuning=True, but this checkpoint is stored quantised ({stored}).",
                "Load the 16-bit checkpoint it was made from.",
            )
        if in_4bit or in_8bit or in_fp8:
            say("full_finetuning=True trains all weights, so they are held in full, not in 4 or 8 bits.")
        return "trained"
    if stored:
        if in_8bit or in_16bit or in_fp8:
            say(f"The checkpoint is quantised ({stored}) and loads so; load_in_{chosen[0]} is set aside.")
        return "stored"
    if in_8bit or in_fp8:
        return "int8" if in_8bit else "fp8"
    return "16bit" if in_16bit or in_4bit is False else "nf4"


def checkpointing_wanted(value: bool | str | None) -> bool | None:
    """`use_gradient_checkpointing` in any spelling; "unsloth" is the alias scripts carry and means True.

    Raises:
        WhetError: `python_api.checkpointing` for any other text.
    """
    if value is None or isinstance(value, bool):
        return value
    words = {"unsloth": True, "whet": True, "true": True, "false": False}
    if value.lower() not in words:
        raise WhetError(
            "python_api.checkpointing",
            f"use_gradient_checkpointing={value!r} is no choice.",
            'Use True, False or "unsloth" (the same as True).',
        )
    return words[value.lower()]


def target_names(target_modules: Sequence[str] | str | None) -> list[str] | Literal["all-linear"]:
    """Names of the layers to adapt; by default the seven linear layers of a decoder layer."""
    if target_modules == "all-linear":
        return "all-linear"
    if isinstance(target_modules, str):
        return [target_modules]
    return list(LINEAR_NAMES if target_modules is None else target_modules)


def adapter_section(
    model: Any,
    r: int,
    target_modules: list[str] | Literal["all-linear"],
    lora_alpha: float,
    lora_dropout: float,
    bias: str,
    modules_to_save: Sequence[str] | None,
    use_rslora: bool,
    use_dora: bool,
) -> AdapterSection:
    """The arguments of `get_peft_model` as the engine's section.

    Raises:
        WhetError: `python_api.adapter` for a model that already has one.
    """
    if isinstance(model, PeftModel):
        raise WhetError(
            "python_api.adapter",
            "This model already has an adapter.",
            "Call get_peft_model once, on a model without one; a loaded adapter trains on as it is.",
        )
    return AdapterSection(
        kind="dora" if use_dora else "rslora" if use_rslora else "lora",
        rank=r,
        alpha=lora_alpha,
        dropout=lora_dropout,
        bias=bias,  # type: ignore[arg-type]  # pydantic checks the value
        target_modules=target_modules,
        modules_to_save=list(modules_to_save or []),
    )


def set_aside(given: dict[str, Any], also: Iterable[str]) -> None:
    """Name the arguments that have no effect; refuse those that no generation had."""
    refuse_unknown("from_pretrained", given, LOAD_WITHOUT_EFFECT, also)
    for name, value in given.items():
        if value not in (None, False, True):
            say(f"{name}= has no effect: {LOAD_WITHOUT_EFFECT[name]}.")


def has_vllm() -> bool:
    """Whether it is installed; nothing is imported."""
    return find_spec("vllm") is not None


def second_engine(given: dict[str, Any]) -> tuple[bool, float | None]:
    """`fast_inference`, and the share of the GPU for it; their arguments are taken out of `given`.

    Without vLLM it is said aloud what answers instead.
    """
    if not given.pop("fast_inference", False):
        return False, None
    names = [name for name, reason in LOAD_WITHOUT_EFFECT.items() if reason == _ENGINE]
    settings = {name: given.pop(name, None) for name in names}
    if not has_vllm():
        say(
            "fast_inference=True: vLLM is not installed (`pip install vllm`, on a machine with an NVIDIA "
            "GPU). Answers are written by whet's own decoding, on the weights that train."
        )
    return True, settings["gpu_memory_utilization"]


def refuse_adapter_options(given: dict[str, Any], also: Iterable[str]) -> None:
    """Defaults pass; an option that would change the adapter and is not supported is refused by name."""
    refuse_unknown("get_peft_model", given, ADAPTER_DEFAULTS, also)
    for name, value in given.items():
        if name in _HARMLESS or value == ADAPTER_DEFAULTS[name] or str(value).endswith("CAUSAL_LM"):
            continue
        if name == "loftq_config" and not value:
            continue
        raise WhetError(
            "python_api.adapter_option",
            f"get_peft_model({name}={value!r}) is not supported.",
            "Leave it out, or make the adapter with peft and pass the model to SFTTrainer.",
        )
