"""A model that answers does so on the fast path; one that trains is as it was before."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from peft import PeftModel
from torch import nn

from ..models.fast_path import apply_fast_path, bind_generate, program_of, take_off_fast_path
from .notes import say
from .state import base_model

_FROZEN: WeakKeyDictionary[nn.Module, list[nn.Parameter]] = WeakKeyDictionary()
"""Base models put on the fast path here, and which of their weights trained until then."""


def start_answering(model: Any) -> None:
    """Bind a fast `generate` to the model; one that the fast path does not know keeps transformers'."""
    base, program = base_model(model), program_of(model)
    if program is None or not program.is_current():
        # An adapter's factors are read anew for every answer; whole weights must not change meanwhile.
        trained = [] if isinstance(model, PeftModel) else [p for p in base.parameters() if p.requires_grad]
        for param in trained:
            param.requires_grad_(False)
        report = apply_fast_path(model, base.dtype if program is None else program.dtype)
        if program_of(model) is None:
            for param in trained:
                param.requires_grad_(True)
            say(f"This model answers with transformers' own generate: {report}.")
            return
        if program is None or trained:
            _FROZEN[base] = trained
    bind_generate(model)


def stop_answering(model: Any) -> None:
    """Undo :func:`start_answering`; what was on the fast path before it stays there."""
    base = base_model(model)
    program = program_of(model)
    if program is not None:
        program.decoding = None
    if base in _FROZEN:
        take_off_fast_path(model)
        for param in _FROZEN.pop(base):
            param.requires_grad_(True)
    vars(model).pop("generate", None)
