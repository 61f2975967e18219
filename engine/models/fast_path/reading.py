"""What a program was read from, so that it is known when the model has become another one."""

from __future__ import annotations

from collections.abc import Hashable

from peft.tuners.lora import LoraLayer
from torch import nn


def reading(decoder: nn.Module) -> tuple[Hashable, ...]:
    """A value that changes when modules, active adapters, frozen weights or what trains of them change.

    What trains may lie anywhere: it is looked up at every step, and an optimizer moves it to buffers of its
    own. Frozen weights that PEFT merges an adapter into in place stay where they are, and are followed.
    """
    seen: list[Hashable] = []
    for module in decoder.modules():
        seen.append(id(module))
        if isinstance(module, LoraLayer):
            seen.append(tuple(module.active_adapters))
        seen += [None if p.requires_grad else p.data_ptr() for p in module.parameters(recurse=False)]
    return tuple(seen)
