"""Recomputing activations in the backward pass: by the fast path for a model on it, else by transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import PeftModel

from ..models.fast_path import Keep, program_of
from .state import base_model


def is_checkpointing(model: Any) -> bool:
    """Whether any layer recomputes its activations in the backward pass."""
    program = program_of(model)
    if program is not None:
        return any(keep != Keep() for keep in program.keep)
    return any(getattr(module, "gradient_checkpointing", False) for module in base_model(model).modules())


def stop_checkpointing(model: Any) -> None:
    """Keep activations from now on."""
    if not _recompute_by_program(model, False):
        _method(model, "disable")()


def start_checkpointing(model: Any) -> None:
    """Recompute activations from now on; a frozen base passes gradients to its adapter."""
    if _recompute_by_program(model, True):
        return
    _method(model, "enable")({"use_reentrant": False})
    if isinstance(model, PeftModel):
        model.enable_input_require_grads()


def _recompute_by_program(model: Any, recompute: bool) -> bool:
    program = program_of(model)
    if program is None:
        return False
    kept = [not recompute] * len(program.layers)
    program.set_keep(kept, kept)
    return True


def _method(model: Any, action: str) -> Callable[..., None]:
    """Under the name that the supported range of transformers has for it."""
    base = base_model(model)
    newer: Callable[..., None] | None = getattr(base, f"activation_checkpointing_{action}", None)
    return newer or getattr(base, f"gradient_checkpointing_{action}")
