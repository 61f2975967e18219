"""Gradient checkpointing on a model, under the names that the supported range of transformers has for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import PeftModel

from .state import base_model


def is_checkpointing(model: Any) -> bool:
    """Whether any layer recomputes its activations in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) for module in base_model(model).modules())


def stop_checkpointing(model: Any) -> None:
    """Keep activations from now on."""
    _method(model, "disable")()


def start_checkpointing(model: Any) -> None:
    """Recompute activations from now on; a frozen base passes gradients to its adapter."""
    _method(model, "enable")({"use_reentrant": False})
    if isinstance(model, PeftModel):
        model.enable_input_require_grads()


def _method(model: Any, action: str) -> Callable[..., None]:
    base = base_model(model)
    newer: Callable[..., None] | None = getattr(base, f"activation_checkpointing_{action}", None)
    return newer or getattr(base, f"gradient_checkpointing_{action}")
