"""Any model of transformers by the class that is asked for, with its tokenizer or processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor

from ..errors import WhetError
from ..methods.classification.loading import UNROUNDED, head_modules
from ..models.loading import Precision, load_tokenizer, weight_options
from ..models.own_code import refused_code
from .model_classes import class_for, head_of

ENDS = ("proj_out", "embed_out", "codebooks_head", "codec_model")
"""Heads under other names, and a codec that only listens: bitsandbytes leaves them alone."""
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Loaded:
    """A model with what prepares its inputs."""

    model: Any
    processor: Any
    """transformers' processor where the folder has one, else the tokenizer."""
    heads: tuple[str, ...]
    """Modules of the task that stand on the base; those that the files lack are random."""

    @property
    def tokenizer(self) -> Any:
        """Inside a processor."""
        return getattr(self.processor, "tokenizer", self.processor)


def load_config(folder: Path, trusted: bool, changes: dict[str, Any]) -> Any:
    """config.json with the caller's ``num_labels`` and the like; None changes nothing.

    Raises WhetError ``model.load``, ``model.remote_code``.
    """
    wanted = {name: value for name, value in changes.items() if value is not None}
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted, **wanted)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(folder, "AutoConfig", error) from error


def load_any(folder: Path, auto_model: Any, config: Any, settings: Precision, trusted: bool) -> Loaded:
    """Weights in the precision that is asked for, and the processor. No network, safetensors only.

    Raises:
        WhetError: ``model.load``, ``model.remote_code``, ``python_api.precision``.
    """
    if settings.base_precision == "fp8":
        raise no_fp8()
    kind = class_for(auto_model, config, folder)
    unrounded = [*UNROUNDED, *ENDS]
    try:
        options = weight_options(folder, config, settings, unrounded=unrounded, trust_remote_code=trusted)
        model, seen = kind.from_pretrained(folder, config=config, **options)
        processor = _processor(folder, trusted)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(folder, kind.__name__, error) from error
    heads: list[str] = []
    if head_of(model) is not None:
        heads = head_modules(folder, model, seen["missing_keys"], seen["mismatched_keys"])
    elif broken := sorted(
        [*map(str, seen["missing_keys"]), *(str(one[0]) for one in seen["mismatched_keys"])]
    ):
        raise WhetError(
            "model.load",
            f"{folder} lacks {len(broken)} weights of {kind.__name__}, or holds them in another shape: "
            f"{broken[0]}.",
            "Check that the folder is a model of that class, downloaded whole.",
        )
    return Loaded(model, processor, tuple(heads))


def no_fp8() -> WhetError:
    """Of any model but a causal language model."""
    return WhetError(
        "python_api.precision",
        "load_in_fp8=True is for causal language models; its layers are not made for others.",
        "Use load_in_4bit, load_in_8bit or load_in_16bit.",
    )


def _processor(folder: Path, trusted: bool) -> Any:
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        return load_tokenizer(folder, trust_remote_code=trusted)
    return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)


def _not_loaded(folder: Path, what: str, error: Exception) -> WhetError:
    return refused_code(folder, error) or WhetError(
        "model.load",
        f"{folder} could not be loaded by {what}: {str(error).strip().splitlines()[0]}",
        "Check that the folder holds config.json and the complete safetensors weights of such a model.",
    )
