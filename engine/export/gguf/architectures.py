"""Which models the converter knows, and why not the others. Light: plan asks it before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import WhetError
from .descriptor import Architecture
from .families import ARCHITECTURES
from .families.encoders import NOT_COMPUTED
from .model_config import ModelConfig
from .rope import rope_reason

SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")


def supported_architecture(
    model_type: str, config: Mapping[str, Any], folder: Path | None = None
) -> str | None:
    """None when a model of this config can be converted, otherwise the reason why not, as one sentence.

    Args:
        model_type: ``model_type`` of config.json.
        config: the whole config.json.
        folder: where it lies; an embedding model says there how it pools.
    """
    if model_type in NOT_COMPUTED:
        return NOT_COMPUTED[model_type]
    try:
        return _refusal(model_type, config, folder)
    except WhetError as error:
        return error.message
    # A foreign file: what it says instead of a number or a name shows itself where that is used.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return f"config.json says what no {model_type} does ({type(error).__name__}: {error})."


def _refusal(model_type: str, config: Mapping[str, Any], folder: Path | None) -> str | None:
    found = _find(model_type, config, folder)
    if found is None:
        known = ", ".join(dict.fromkeys(name for one in ARCHITECTURES for name in one.model_types))
        return f"The GGUF writer does not know model_type {model_type!r} yet (it knows {known})."
    return _reason(model_type, *found)


def find_architecture(
    config: Mapping[str, Any], folder: Path | None = None
) -> tuple[Architecture, ModelConfig]:
    """The descriptor of a config.json, and the config as that family's class reads it.

    Raises:
        WhetError: ``gguf.unsupported`` with the reason.
    """
    model_type = str(config.get("model_type", ""))
    reason = supported_architecture(model_type, config, folder)
    found = _find(model_type, config, folder) if reason is None else None
    if found is None:
        raise WhetError(
            "gguf.unsupported",
            str(reason),
            "Export the adapter or the merged weights instead, or convert the merged folder "
            "with another tool.",
        )
    return found


def _find(
    model_type: str, config: Mapping[str, Any], folder: Path | None
) -> tuple[Architecture, ModelConfig] | None:
    for architecture in ARCHITECTURES:
        if model_type in architecture.model_types:
            read = ModelConfig.read(config, architecture.defaults, folder)
            if architecture.applies(read):
                return architecture, read
    return None


def _reason(model_type: str, architecture: Architecture, config: ModelConfig) -> str | None:
    activation = config.activation or architecture.activations[0]
    if activation not in architecture.activations:
        computed = architecture.activations[0]
        return f"llama.cpp computes {computed} for {model_type}, this model uses {activation}."
    if architecture.head == "shared" and config.tied is False:
        return f"llama.cpp has no output layer of its own for {model_type}, and this model does not share it."
    if architecture.ropes and (reason := rope_reason(config.rope, architecture.ropes, config.head_dim)):
        return reason
    config.require(*SIZES)
    reasons = (refusal(config) for refusal in architecture.refusals)
    return next((one for one in reasons if one is not None), None)
