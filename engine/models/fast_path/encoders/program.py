"""An encoder as the fast path runs it: embeddings, halves of layers, last norm, over packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from whet.kernels.dropout import dropout
from whet.kernels.lora_refresh import Refresher

from ..attention_half import RotaryTable
from ..in_force import InForce
from ..packed import PackedTokens
from ..program import TABLE_STEP
from ..projections import Workspace
from ..reading import reading
from ..report import FastPathReport
from .attention import EncoderAttention
from .half import NONE, Drops, Half
from .mlp import EncoderMlp
from .norms import LayerNorm


@dataclass(frozen=True)
class Embeddings:
    """The tables whose rows are added and normed.

    Args:
        words: by token.
        positions: by place in the text; None where attention rotates instead.
        types: by segment; None where the family has none.
        norm: of the sum.
        first: row of ``positions`` for a text's first token.
    """

    words: nn.Embedding
    positions: nn.Embedding | None
    types: nn.Embedding | None
    norm: LayerNorm
    first: int = 0

    def __call__(
        self, packed: PackedTokens, dtype: torch.dtype, types_T: torch.Tensor | None
    ) -> torch.Tensor:
        """(T, D), normed; differentiable where a table trains."""
        x_TD = self.words(packed.input_ids_T)
        if self.types is not None:
            x_TD = x_TD + (self.types.weight[:1] if types_T is None else self.types(types_T))
        if self.positions is not None:
            places_T = packed.positions_T if not self.first else packed.positions_T + self.first
            x_TD = x_TD + self.positions(places_T)
        return self.norm(x_TD.to(dtype))


@dataclass
class Layer:
    """The two halves, their rotary table (None: no rotation), and transformers' module of the layer."""

    attention: EncoderAttention
    mlp: EncoderMlp
    rope: str | None
    module: Any


@dataclass
class EncoderProgram:
    """What runs in place of an encoder's own forward pass.

    Args:
        encoder: transformers' base model; its modules hold all weights.
        embeddings: tables.
        layers: in order.
        norm: after the last layer.
        dtype: of the residual stream.
        report: what is fused.
        workspace: what quantised weights are expanded into.
        hidden_dropout, attention_dropout: probabilities while the encoder trains.
    """

    encoder: Any
    embeddings: Embeddings
    layers: list[Layer]
    norm: LayerNorm
    dtype: torch.dtype
    report: FastPathReport
    workspace: Workspace
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    refresher: Refresher = field(default_factory=Refresher, repr=False)
    tables: dict[tuple[str, int], RotaryTable] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.read_from = reading(self.encoder)
        parts = [part for half in self.halves() for part in half.projections()]
        self.in_force = InForce(parts, self.refresher)

    def halves(self) -> list[Half]:
        """All of them, in order."""
        return [half for layer in self.layers for half in (layer.attention, layer.mlp)]

    def is_current(self) -> bool:
        """Whether the encoder is what it was when it was put on the fast path; see DecoderProgram."""
        return reading(self.encoder) == self.read_from

    def hidden_states(self, packed: PackedTokens, types_T: torch.Tensor | None = None) -> torch.Tensor:
        """Normed hidden states (T, D), differentiable.

        Args:
            packed: on the encoder's device.
            types_T: int64, segment of each token; None is 0.
        """
        self.in_force.refresh()
        drops = self._drops()
        x_TD, delta_TD = self.embeddings(packed, self.dtype, types_T), None
        if drops[0].seeds is not None and self.hidden_dropout:
            x_TD = dropout(x_TD, self.hidden_dropout, drops[0].seeds[:1])
        keep = not self.recomputes()
        for index, layer in enumerate(self.layers):
            table = None if layer.rope is None else self.table(layer.rope, packed.longest)
            one, other = drops[2 * index + 1], drops[2 * index + 2]
            x_TD, delta_TD = layer.attention(x_TD, delta_TD, packed, keep, one, table)
            x_TD, delta_TD = layer.mlp(x_TD, delta_TD, packed, keep, other)
        return self.in_force.hold(self.norm(x_TD, delta_TD))

    def recomputes(self) -> bool:
        """Whether activation checkpointing is on: then a half keeps its input alone."""
        return bool(self.encoder.training and self.layers[0].module.gradient_checkpointing)

    def buffers(self) -> list[torch.Tensor]:
        """What a pass reads beside weights and activations."""
        tables = [part for table in self.tables.values() for part in (table.cos_PW, table.sin_PW)]
        return tables if self.workspace.buffer is None else [*tables, self.workspace.buffer]

    def _drops(self) -> Sequence[Drops]:
        """Dropout of the embeddings and of each half, its seeds drawn anew by torch's generator."""
        count = 2 * len(self.layers) + 1
        rates = self.hidden_dropout, self.attention_dropout
        if not self.encoder.training or not any(rates):
            return [NONE] * count
        device = self.embeddings.words.weight.device
        seeds = torch.randint(2**31 - 1, (count, 2), dtype=torch.int32, device=device)
        return [Drops(*rates, row) for row in seeds]

    def table(self, rope: str, longest: int) -> RotaryTable:
        """cos and sin in fp32 for positions below ``longest`` at least, by the model's own rotary module."""
        positions = -(-longest // TABLE_STEP) * TABLE_STEP
        key = (rope, positions)
        if key not in self.tables:
            device = self.embeddings.words.weight.device
            like = torch.empty((), dtype=torch.float32, device=device)
            with torch.no_grad():
                cos, sin = self.encoder.rotary_emb(like, torch.arange(positions, device=device)[None], rope)
            self.tables[key] = RotaryTable(cos[0].contiguous(), sin[0].contiguous())
        return self.tables[key]
