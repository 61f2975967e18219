"""What loading knew about a model and later steps need: kept beside the model, not on its class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import nn


@dataclass(frozen=True)
class ModelState:
    """Facts of one loaded base model."""

    base_dir: Path
    """Folder of the base weights, what an adapter is merged onto."""
    name: str
    """What a saved adapter calls its base."""
    max_seq_length: int
    """Longest training row in tokens unless the trainer is told otherwise."""
    dtype: torch.dtype
    """What it computes in."""
    rounded: str | None = None
    """`nf4`, `int8` or `fp8` where the base in memory was rounded while loading."""
    gradient_checkpointing: bool | None = None
    """What `get_peft_model` asked for; None leaves it to the trainer's configuration."""
    heads: tuple[str, ...] = ()
    """Modules of a task on top of the base: they train whole beside an adapter."""
    fast_inference: bool = False
    """Trainers that learn from rewards shall answer by vLLM, where it is installed."""
    gpu_memory_utilization: float | None = None
    """Share of the GPU for it."""
    trained_on: Any = None
    """Tokenised rows of the trainer that was started last, in whatever form it held them."""


_STATES: WeakKeyDictionary[nn.Module, ModelState] = WeakKeyDictionary()


def base_model(model: nn.Module) -> Any:
    """The transformers model under a PEFT wrapper, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def remember(model: nn.Module, state: ModelState) -> None:
    """Attach `state` to the base model under `model`; it lives as long as the weights do."""
    _STATES[base_model(model)] = state


def update(model: nn.Module, **changes: Any) -> None:
    """Change fields of a remembered state; a model from elsewhere has none and stays so."""
    if (state := state_of(model)) is not None:
        remember(model, replace(state, **changes))


def state_of(model: nn.Module) -> ModelState | None:
    """The state of a model that `FastLanguageModel` loaded, None for any other."""
    return _STATES.get(base_model(model))
