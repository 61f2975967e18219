"""LoRA, rsLoRA and DoRA through PEFT, in PEFT's own file format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed

from ..adapted import WHOLE, adapter_parts
from ..errors import WhetError
from ..recipe import AdapterSection
from .fp8 import Fp8Linear
from .quantization import keep_bits_in_place
from .reduced_ends import ReducedEmbedding, ReducedHead


def add_adapter(
    model: PreTrainedModel,
    section: AdapterSection,
    seed: int,
    *,
    name: str = "",
    revision: str | None = None,
    task: str | None = "CAUSAL_LM",
) -> PeftModel:
    """Wrap a model with a fresh adapter; only the adapter (and ``modules_to_save``) has gradients.

    Everything that trains is held in fp32: an update of a bf16 number is lost below 1/256 of it. A quantised
    base needs no further preparation, its other weights are frozen in the compute type.

    Args:
        model: loaded base; changed in place.
        section: kind, rank, alpha, dropout, bias, modules.
        seed: of the random A matrices (B starts at zero, so the model's answers do not change).
        name: hub id or path that the saved adapter names as its base; by default where the base came from.
        revision: of the base on the hub.
        task: PEFT's name of what the model does; None for a wrapper that passes on whatever it is given.

    Raises:
        WhetError: ``adapter.no_target`` when no module has any of the names, ``adapter.rounded`` when weights
            that are to train, or that DoRA reads, are held in fewer bits.
    """
    targets, saved = adapter_parts(section)
    _refuse_rounded(model, section, saved)
    tied = ties_ends(model.config)
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # PEFT divides it, any number will do
        lora_dropout=section.dropout,
        bias=section.bias,
        target_modules=targets,
        modules_to_save=saved or None,
        use_rslora=section.kind == "rslora",
        use_dora=section.kind == "dora",
        task_type=task,
        revision=revision,
        ensure_weight_tying=tied and any(name in WHOLE for name in saved),
    )
    keep_bits_in_place(model)
    set_seed(seed)
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:
        leaves = {path.rsplit(".", 1)[-1] for path, part in model.named_modules() if _is_linear(part)}
        raise WhetError(
            "adapter.no_target",
            f"No adapter fits: {str(error).strip().splitlines()[0]}",
            f"Set adapter.target_modules to some of {', '.join(sorted(leaves))}, or to all-linear.",
        ) from error
    if not isinstance(wrapped, PeftModel):
        raise TypeError(f"PEFT returned a {type(wrapped).__name__}")
    if name:
        wrapped.peft_config["default"].base_model_name_or_path = name
    hold_trained_in_fp32(wrapped)
    return wrapped


def _refuse_rounded(model: PreTrainedModel, section: AdapterSection, saved: list[str]) -> None:
    kinds = {type(part) for part in model.modules()}
    reduced = any(issubclass(kind, ReducedEmbedding | ReducedHead) for kind in kinds)
    whole = [name for name in saved if name in WHOLE]
    if whole and reduced:
        raise WhetError(
            "adapter.rounded",
            f"{' and '.join(whole)} cannot train: embedding or head is held in fewer bits.",
            "Set model.embedding_precision and model.head_precision to 16bit.",
        )
    if section.kind == "dora" and Fp8Linear in kinds:
        raise WhetError(
            "adapter.rounded",
            "DoRA reads the base weights as plain numbers, and this base is held in FP8.",
            "Use adapter.kind=lora, or model.precision=bf16 or nf4.",
        )


def ties_ends(config: Any) -> bool:
    """Whether a model's head is its embedding; what a composite configuration says outside decides."""
    inner, outer = config.get_text_config().to_dict(), config.to_dict()
    return bool(outer.get("tie_word_embeddings", inner.get("tie_word_embeddings", False)))


def hold_trained_in_fp32(model: torch.nn.Module) -> None:
    """Cast every parameter that has a gradient to fp32."""
    for param in model.parameters():
        if param.requires_grad:
            param.data = param.data.float()


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear)


def save_weights(model: Any, folder: Path, whole: dict[str, torch.Tensor] | None = None) -> None:
    """Write what was trained as safetensors: the adapter in PEFT's format, or the whole model.

    Args:
        model: with the weights, or with shares of them.
        folder: receives the files.
        whole: weights to write in place of the model's own, by their names in its state dict.
    """
    if isinstance(model, PeftModel):
        # "auto" would ask the hub for the base's configuration; what trains is in modules_to_save anyway.
        model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=whole)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's form to fill in; whet writes a real card
    else:
        model.save_pretrained(folder, state_dict=whole)
