"""What a program was read from, so that it is known when the model has become another one."""

from __future__ import annotations

from collections.abc import Hashable

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


def reading(decoder: nn.Module) -> tuple[Hashable, ...]:
    """A value that changes when modules, active adapters or base weights do.

    Adapters' own weights may lie anywhere, and be switched off and on: they are looked up at every step. Base
    weights that PEFT merges an adapter into in place stay where they are, and are followed.
    """
    seen: list[Hashable] = []
    adapters: set[int] = set()
    for module in decoder.modules():
        seen.append(id(module))
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            seen.append(tuple(module.active_adapters))
            parts = [getattr(module, name) for name in module.adapter_layer_names]
            adapters.update(id(inner) for part in parts for inner in part.modules())
        if id(module) not in adapters:
            # A weight that trains is moved by its optimizer, and is looked up too.
            seen += [None if p.requires_grad else p.data_ptr() for p in module.parameters(recurse=False)]
    return tuple(seen)
