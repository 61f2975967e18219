"""Recomputing activations in the backward pass: by the fast path for a model on it, else by transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from peft import PeftModel
from transformers import TrainingArguments

from ..methods.sft.fast_choice import mixed_reason
from ..models.fast_path import Keep, program_of
from .state import base_model, state_of, update

_NAMES = {field.name for field in fields(TrainingArguments)}
CHECKPOINTING = [n for n in ("gradient_checkpointing", "activation_checkpointing") if n in _NAMES]
"""Names of one setting of a trainer's configuration, the newest last; older ones mirror it."""


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


def start_checkpointing(model: Any, *, through_inputs: bool = True) -> None:
    """Recompute activations from now on; a frozen base passes gradients to its adapter.

    Args:
        through_inputs: let embeddings' outputs have gradients, as reentrant recomputing wants it. A model
            that writes into them cannot have that, and this recomputing does without.
    """
    if _recompute_by_program(model, True):
        return
    _method(model, "enable")({"use_reentrant": False})
    if not through_inputs:
        base_model(model).disable_input_require_grads()
    elif isinstance(model, PeftModel):
        model.enable_input_require_grads()


def pause_checkpointing(model: Any) -> None:
    """Keep activations while the model answers; :func:`resume_checkpointing` knows of it."""
    if is_checkpointing(model):
        stop_checkpointing(model)
        update(model, gradient_checkpointing=True)


def resume_checkpointing(model: Any, asked: bool | None, *, through_inputs: bool = True) -> None:
    """Recompute as `asked`; None: as it was asked for when the model was adapted, or done when it paused."""
    state = state_of(model)
    wanted = state.gradient_checkpointing if asked is None and state is not None else asked
    if wanted:
        start_checkpointing(model, through_inputs=through_inputs)
    elif wanted is False and is_checkpointing(model):
        stop_checkpointing(model)


def recompute_by_program(config: Any, model: Any) -> None:
    """A model on the fast path recomputes by itself what transformers' checkpointing would.

    Args:
        config: of the trainer; its setting is taken over, and switched off in place.
        model: loaded, or its name.
    """
    program = None if isinstance(model, str) else program_of(model)
    if program is None or mixed_reason(config, program.dtype) is not None:
        return
    (start_checkpointing if getattr(config, CHECKPOINTING[-1]) else stop_checkpointing)(model)
    for name in CHECKPOINTING:
        setattr(config, name, False)


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
