"""From a directory to a model ready to train: weights in the planned precision, tokenizer, family."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ..errors import WhetError
from ..parallel.process_group import own_device
from .capped_attention import attention_of
from .families import Family, family_of
from .own_code import refused_code
from .own_files import refuse_files_elsewhere
from .quantization import quantization_config, set_compute_dtype
from .reduced_ends import reduce_ends

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class LoadSettings(Protocol):
    """The part of a plan's resolved values that loading needs; ``plan.resolved`` is one."""

    @property
    def device(self) -> str: ...
    @property
    def compute_dtype(self) -> str: ...
    @property
    def base_precision(self) -> str: ...
    @property
    def embedding_precision(self) -> str: ...
    @property
    def head_precision(self) -> str: ...


@dataclass(frozen=True)
class Precision:
    """Load settings without a plan."""

    device: str = "cpu"
    compute_dtype: str = "fp32"
    base_precision: str = "fp32"
    embedding_precision: str = "16bit"
    head_precision: str = "16bit"


@dataclass
class ModelHandle:
    """A loaded model and what belongs to it."""

    model: Any
    """transformers' ``PreTrainedModel``, or PEFT's wrapper around it once an adapter was added."""
    tokenizer: PreTrainedTokenizerBase
    family: Family
    path: Path
    device: torch.device
    dtype: torch.dtype
    """What it computes in."""
    missing: tuple[str, ...] = ()
    """Weights the files did not hold: random numbers."""
    unexpected: tuple[str, ...] = ()
    """Weights of the files that the model has no place for."""

    @property
    def pad_id(self) -> int:
        """Filler of short rows. It carries no label and is attended by nothing, so any token serves."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0

    @property
    def positions(self) -> int | None:
        """Longest sequence the model was made for, None where its configuration does not say."""
        limit = self.model.config.get_text_config().to_dict().get("max_position_embeddings")
        return None if limit is None else int(limit)


def load_model(
    path: Path,
    settings: LoadSettings,
    *,
    template: str | None = None,
    trust_remote_code: bool = False,
    auto: Any = AutoModelForCausalLM,
    unrounded: Sequence[str] = (),
) -> ModelHandle:
    """Load weights and tokenizer of a local directory. No network, safetensors only.

    Args:
        path: Hugging Face layout, e.g. from :func:`whet.engine.models.locate.resolve_model`.
        settings: device, compute type and how the base weights are held.
        template: chat template (Jinja) to put in force; None keeps the model's own.
        trust_remote_code: run Python code that came with the model; only by a person's explicit choice.
        auto: transformers' class of the kind of model.
        unrounded: modules that stay in 16 bits where bitsandbytes holds the rest in fewer.

    Raises:
        WhetError: ``model.load`` when the files are not a causal language model whet can load,
            ``model.remote_code`` when that takes code of the model's own,
            ``model.ends`` when embedding or head cannot be held as asked.
    """
    skipped = [*unrounded, "lm_head"] if unrounded else []
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
        options = weight_options(
            path, config, settings, unrounded=skipped, trust_remote_code=trust_remote_code
        )
        model, names = auto.from_pretrained(path, config=config, **options)
    except (OSError, ValueError, KeyError) as error:
        raise refused_code(path, error) or WhetError(
            "model.load",
            f"{path} could not be loaded by {auto.__name__}: {str(error).strip().splitlines()[0]}",
            "Check that the folder holds config.json and the complete safetensors weights.",
        ) from error
    _refuse_misshapen(path, names["mismatched_keys"])
    reduce_ends(model, settings.embedding_precision, settings.head_precision)
    return ModelHandle(
        model=model,
        tokenizer=load_tokenizer(path, template=template, trust_remote_code=trust_remote_code),
        family=family_of(config.model_type),
        path=path,
        device=torch.device(settings.device),
        dtype=DTYPES[settings.compute_dtype],
        missing=tuple(sorted(names["missing_keys"])),
        unexpected=tuple(sorted(names["unexpected_keys"])),
    )


def weight_options(
    path: Path,
    config: Any,
    settings: LoadSettings,
    *,
    unrounded: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """What transformers' ``from_pretrained`` is told of weights: their type, how they are rounded, and where
    they go. No network, safetensors only; missing and misshapen ones come back by name.

    Args:
        path: the model's folder.
        config: of the model; one that is already quantised computes in the settings' type from now on.
        settings: device, compute type and how the base weights are held.
        unrounded: all modules that bitsandbytes leaves in 16 bits; without any it chooses itself.
        trust_remote_code: run Python code that came with the model.

    Raises:
        WhetError: ``model.quantization`` for a checkpoint that is quantised otherwise than whet trains on.
    """
    dtype = DTYPES[settings.compute_dtype]
    set_compute_dtype(config, dtype)
    options: dict[str, Any] = {
        "dtype": DTYPES.get(settings.base_precision, dtype),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # the caller refuses them, or replaces a head
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": trust_remote_code,
        **attention_of(path),
    }
    quantised = "quantization_config" in config.to_dict()
    quantization = None if quantised else quantization_config(settings.base_precision, dtype)
    if quantization is not None:
        options["quantization_config"] = quantization
    if unrounded and isinstance(quantization, BitsAndBytesConfig):
        quantization.llm_int8_skip_modules = list(unrounded)
    if quantised or quantization is not None or settings.device != "cpu":
        options["device_map"] = {"": own_device(settings.device)}
    return options


def _refuse_misshapen(path: Path, mismatched: Collection[Any]) -> None:
    """Raises WhetError ``model.load`` for weights of another shape than config.json describes."""
    if mismatched:
        shown = [f"{name} is {tuple(stored)}, not {tuple(wanted)}" for name, stored, wanted in mismatched]
        raise WhetError(
            "model.load",
            f"{path} holds {len(shown)} weights in another shape than its config.json says: {shown[0]}.",
            "Download the model again, whole, or mend config.json. `whet explain E08` and L03 say more.",
        )


def stored_dtype(dtype: str) -> torch.dtype:
    """What trained weights of a base that came in ``dtype``, as its configuration says it, are written in."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype, torch.float32)


def load_tokenizer(
    path: Path, *, template: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a local directory, with ``template`` (Jinja) in force where one is given.

    It is what tokenizer.json says, as rows are tokenised and as the trained model is saved: transformers 5
    builds the pipeline of some classes anew, and then a text may be cut otherwise than the file does.

    Raises WhetError ``model.remote_code`` for one with code of its own, ``model.link`` for one made of files
    elsewhere.
    """
    settings = path / "tokenizer_config.json"
    if settings.is_file() and not (path / "tokenizer.json").is_file():
        refuse_files_elsewhere(path, json.loads(settings.read_text(encoding="utf-8")))
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except ValueError as error:
        refusal = refused_code(path, error)
        if refusal is None:
            raise
        raise refusal from error
    # The general class is the file; of a class of its own the steps are looked at.
    own_class = tokenizer.is_fast and type(tokenizer) is not PreTrainedTokenizerFast
    if own_class and (path / "tokenizer.json").is_file() and _is_rebuilt(path, tokenizer):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def _is_rebuilt(path: Path, tokenizer: Any) -> bool:
    """Whether its steps before the vocabulary are others than those of tokenizer.json."""
    own, stored = tokenizer.backend_tokenizer, Tokenizer.from_file(str(path / "tokenizer.json"))
    pairs = ((own.normalizer, stored.normalizer), (own.pre_tokenizer, stored.pre_tokenizer))
    return any(_steps(mine) != _steps(given) for mine, given in pairs)


def _steps(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())
