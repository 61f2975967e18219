"""What a family descriptor says. Light: `plan` reads it without torch, the worker resolves its names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

AttentionBias = Literal["none", "config", "qkv"]


@dataclass(frozen=True)
class Supported:
    """Works and is tested."""


@dataclass(frozen=True)
class Unsupported:
    """Refused, with the reason a person is told."""

    reason: str


@dataclass(frozen=True)
class Experimental:
    """Works as far as was seen; the note says what is not proven."""

    note: str


Capability = Supported | Unsupported | Experimental

LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

EVERYTHING: dict[str, Capability] = {
    name: Supported() for name in ("sft", "lora", "dora", "full", "nf4", "int8", "packing")
}


@dataclass(frozen=True)
class Family:
    """One model family: how it is recognised and what whet may do with it.

    Args:
        name: ours, e.g. ``qwen2``.
        model_types: values of ``model_type`` in config.json that are this family.
        target_modules: leaf names of the linear layers an adapter takes by default.
        chat_template: the template that fits this family's chat models, None where no single one does.
        attention_bias: which attention projections carry a bias; ``config`` reads ``attention_bias``
            (then q, k, v and o have one), ``qkv`` is always q, k and v.
        mlp_bias: the MLP may carry biases (config key ``mlp_bias``).
        qk_norm: q and k are normalised a head, with one weight of ``head_dim`` each.
        default_head_dim: used where config.json has no ``head_dim``; None is hidden size / heads.
        capabilities: sft, lora, dora, full, nf4, int8, packing. What the GGUF writer can do is its own to say
            (:mod:`whet.engine.export.gguf.architectures`).
    """

    name: str
    model_types: tuple[str, ...]
    target_modules: tuple[str, ...] = LINEAR_NAMES
    chat_template: str | None = None
    attention_bias: AttentionBias = "none"
    mlp_bias: bool = False
    qk_norm: bool = False
    default_head_dim: int | None = None
    capabilities: dict[str, Capability] = field(default_factory=lambda: dict(EVERYTHING))
