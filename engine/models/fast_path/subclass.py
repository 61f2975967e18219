"""Fast subclasses of transformers' models: how one is made, and whether its program still is the model."""

from __future__ import annotations

import warnings
from typing import Protocol

import torch


class Program(Protocol):
    """What runs in the model's place."""

    @property
    def dtype(self) -> torch.dtype: ...
    def is_current(self) -> bool: ...


_MADE: dict[tuple[type, type], type] = {}


def fast_subclass(fast: type, plain: type) -> type:
    """``plain`` with ``fast`` mixed in before it, one for each.

    It prints as the plain one: transformers looks up what a class can record (hidden states, attentions,
    router logits) by that text.
    """
    if (fast, plain) not in _MADE:
        place = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
        _MADE[fast, plain] = type(f"Fast{plain.__name__}", (fast, plain), place)
    return _MADE[fast, plain]


def computes_alike(program: Program, device: str, again: str) -> bool:
    """Whether a program is the model as it is now, in the type that is asked for.

    Args:
        device: type of the device, for its autocast.
        again: the function that reads the model anew.
    """
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != program.dtype:
        return False
    if not program.is_current():
        warnings.warn(
            "The model's adapters or weights changed since it was put on the fast path: it runs plain "
            f"transformers, which is slower. Call {again} again to read it anew.",
            stacklevel=2,
        )
        return False
    return True
