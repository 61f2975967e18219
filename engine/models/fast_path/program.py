"""A decoder as the fast path runs it: embeddings, halves of layers, final norm, over packed rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from whet.kernels.linear_cross_entropy import linear_cross_entropy
from whet.kernels.lora_refresh import Refresher
from whet.kernels.rms_norm import rms_norm
from whet.kernels.selective_log_softmax import PredictedTokens, mean_logits, predicted_tokens
from whet.kernels.vocabulary_head import LogitMap

from ..families.fast_layout import FastSettings
from .attention_half import AttentionHalf, RotaryTable
from .in_force import InForce
from .mlp_half import MlpHalf
from .moe_half import MoeHalf
from .norms import Norm
from .offload import Offloader
from .packed import PackedTokens
from .plain_halves import PlainAttentionHalf, PlainMlpHalf
from .projections import Workspace
from .reading import reading
from .report import FastPathReport

if TYPE_CHECKING:
    from .decoding import Decoding

PLAIN = (PlainAttentionHalf, PlainMlpHalf)
TABLE_STEP = 1024
"""Rotary tables are made for multiples of this many positions, so that few are ever made."""


@dataclass(frozen=True)
class Keep:
    """What one layer holds for its backward pass; the rest is computed again.

    Args:
        attention: projections and attention's output.
        mlp: gate and up.
        offload: what both halves save anyway, their inputs, waits in host memory.
    """

    attention: bool = True
    mlp: bool = True
    offload: bool = False


@dataclass
class Layer:
    """The two halves of a layer, and which rotary table it reads (None: it does not rotate)."""

    attention: AttentionHalf | PlainAttentionHalf
    mlp: MlpHalf | MoeHalf | PlainMlpHalf
    rope: str | None


@dataclass
class DecoderProgram:
    """What runs in place of a decoder's own forward pass.

    Args:
        decoder: transformers' decoder; its modules hold all weights.
        head: the causal model's output layer; None for a model with a task's head.
        settings: of the family's layout, read from the configuration.
        layers: in order.
        norm: the last one.
        dtype: of the residual stream.
        report: what is fused.
        workspace: what quantised weights are expanded into.
        fp8: classes of layers whose products run in FP8.
        keep: what each layer holds for its backward pass; the planner's choice.
        chunk: tokens that go through an MLP at a time.
        logit_bytes: of logits that stand at once; None leaves it to the loss.
    """

    decoder: nn.Module
    head: Any
    settings: FastSettings
    layers: list[Layer]
    norm: Norm
    dtype: torch.dtype
    report: FastPathReport
    workspace: Workspace
    fp8: Collection[str] = ()
    keep: list[Keep] = field(default_factory=list)
    chunk: int = 1 << 30
    logit_bytes: int | None = None
    offloader: Offloader | None = field(default=None, repr=False)
    refresher: Refresher = field(default_factory=Refresher, repr=False)
    tables: dict[tuple[str, int], RotaryTable] = field(default_factory=dict, repr=False)
    decoding: Decoding | None = field(default=None, repr=False)
    """Buffers and graph of the last generation, for the next of its size; None frees them."""

    def __post_init__(self) -> None:
        self.keep = self.keep or [Keep()] * len(self.layers)
        self.read_from = reading(self.decoder)
        fused = [h for layer in self.layers for h in (layer.attention, layer.mlp) if not isinstance(h, PLAIN)]
        self.in_force = InForce([part for half in fused for part in half.projections()], self.refresher)

    @cached_property
    def separable(self) -> bool:
        """Whether the adapter is in fused products alone, so that :meth:`reference` is all of the model."""
        halves = [half for layer in self.layers for half in (layer.attention, layer.mlp)]
        # Experts' adapters are read from PEFT's wrappers, which say themselves whether they are on.
        others = (*PLAIN, MoeHalf)
        whole = [part for part in self.decoder.modules() if isinstance(part, AuxiliaryTrainingWrapper)]
        fused = not any(isinstance(half, others) for half in halves)
        return fused and not whole and not isinstance(self.head, AuxiliaryTrainingWrapper)

    def knows(self, adapter: str) -> bool:
        """Whether another adapter can be the reference: it adapts the same layers by the same ranks."""
        return all(projection.knows(adapter) for projection in self.in_force.projections)

    @contextmanager
    def reference(self, adapter: str | None = None) -> Iterator[None]:
        """Passes without a gradient run on the frozen base while the context lasts, or on another adapter
        that it :meth:`knows`: a reference model, without PEFT's walks over all modules. Of a program that is
        :attr:`separable`."""
        with torch.no_grad(), self.in_force.switched_to(adapter):
            yield

    def is_current(self) -> bool:
        """Whether the model is what it was when it was put on the fast path.

        An adapter added, activated, unloaded or merged into quantised weights makes it another model, which
        :func:`.apply.apply_fast_path` has to read anew. Switching adapters off and merging them into 16- or
        32-bit weights is followed.
        """
        return reading(self.decoder) == self.read_from

    def set_keep(
        self, attention: Sequence[bool], mlp: Sequence[bool], offload: Sequence[bool] | None = None
    ) -> None:
        """What each layer's halves hold for the backward pass, and whose inputs wait in host memory."""
        offload = [False] * len(self.layers) if offload is None else offload
        self.keep = [Keep(*layer) for layer in zip(attention, mlp, offload, strict=True)]

    def hidden_states(self, packed: PackedTokens, embedded_TD: torch.Tensor | None = None) -> torch.Tensor:
        """Normed hidden states (T, D), differentiable.

        Args:
            packed: on the model's device.
            embedded_TD: in place of the embeddings of ``packed.input_ids_T``.
        """
        self.refresh()
        x_TD = self.embed(packed.input_ids_T) if embedded_TD is None else embedded_TD.to(self.dtype)
        delta_TD: torch.Tensor | None = None
        offloader = self._offloader()
        for layer, keep in zip(self.layers, self.keep, strict=True):
            table = None if layer.rope is None else self.table(layer.rope, packed.longest)
            away = offloader if keep.offload else None
            x_TD, delta_TD = layer.attention(x_TD, delta_TD, packed, table, keep.attention, away)
            x_TD, delta_TD = layer.mlp(x_TD, delta_TD, keep.mlp, self.chunk, away)
        norm = self.norm
        y_TD, _ = rms_norm(x_TD, norm.weight, norm.eps, offset=norm.offset, residual=delta_TD)
        return self.in_force.hold(y_TD)

    def loss(self, packed: PackedTokens, rows_S: torch.Tensor, labels_S: torch.Tensor, **options: Any) -> Any:
        """Summed loss of the tokens that follow ``rows_S``, fp32 0-d; with ``statistics=True`` also those.

        Args:
            packed: on the model's device.
            rows_S: int64, places in the packed row whose next token is supervised.
            labels_S: int64, those next tokens; -100 counts nothing.
            options: of :func:`whet.kernels.linear_cross_entropy.linear_cross_entropy`.
        """
        hidden_SD = self.hidden_states(packed).index_select(0, rows_S)
        return linear_cross_entropy(
            hidden_SD, self.head.weight, labels_S, **self._head_options(hidden_SD), **options
        )

    def answers(
        self, packed: PackedTokens, rows_S: torch.Tensor, labels_S: torch.Tensor, temperature: float = 1.0
    ) -> tuple[PredictedTokens, Callable[[], torch.Tensor]]:
        """Log-probabilities of the tokens that follow ``rows_S``, differentiable, with what is found beside
        them; and what makes the mean over the vocabulary of each row's logits, fp32 (S,).

        Args:
            packed: on the model's device.
            rows_S: int64, places in the packed row.
            labels_S: int64, the tokens that follow them.
            temperature: divides the logits.
        """
        hidden_SD = self.hidden_states(packed).index_select(0, rows_S)
        options, head = self._head_options(hidden_SD), self.head
        found = predicted_tokens(hidden_SD, head.weight, labels_S, temperature=temperature, **options)
        map = LogitMap(options["softcap"], options["logit_scale"], temperature)
        return found, lambda: mean_logits(hidden_SD, head.weight, head.bias, map, options["chunk"])

    def _head_options(self, hidden_SD: torch.Tensor) -> dict[str, Any]:
        """What the kernels of the head are told beside weights and rows."""
        settings, vocabulary = self.settings, self.head.weight.shape[0]
        rows = self.logit_bytes and max(1, self.logit_bytes // (vocabulary * hidden_SD.element_size()))
        return {
            "bias_V": self.head.bias,
            "softcap": settings.final_softcap,
            "logit_scale": settings.logit_scale,
            "chunk": rows,
        }

    def buffers(self) -> list[torch.Tensor]:
        """What a pass reads beside weights and activations: rotary tables, quantised weights' workspace."""
        tables = [part for table in self.tables.values() for part in (table.cos_PW, table.sin_PW)]
        return tables if self.workspace.buffer is None else [*tables, self.workspace.buffer]

    def _offloader(self) -> Offloader | None:
        if not torch.is_grad_enabled() or not any(keep.offload for keep in self.keep):
            return None
        if self.offloader is None:
            self.offloader = Offloader(self.norm.weight.device)
        self.offloader.start()
        return self.offloader

    def logits(self, y_TD: torch.Tensor) -> torch.Tensor:
        """Logits (T, V) in fp32 of normed hidden states, scaled and capped; not differentiable."""
        head, settings = self.head, self.settings
        logits_TV: torch.Tensor = head(y_TD.to(head.weight.dtype)).float()
        if settings.logit_scale != 1.0:
            logits_TV = logits_TV * settings.logit_scale
        cap = settings.final_softcap
        return logits_TV if cap is None else torch.tanh(logits_TV / cap) * cap

    def refresh(self) -> None:
        """Bring the adapters' factors, which the optimizer changes, into the compute type."""
        self.in_force.refresh()

    def embed(self, input_ids_T: torch.Tensor) -> torch.Tensor:
        """(T, D), scaled as the family does; Gemma's embedding module scales by itself."""
        embed: nn.Module = self.decoder.embed_tokens  # type: ignore[assignment]
        x_TD: torch.Tensor = embed(input_ids_T[None])[0].to(self.dtype)
        multiplier = self.settings.embedding_multiplier
        return x_TD if multiplier == 1.0 else x_TD * multiplier

    def table(self, rope: str, longest: int) -> RotaryTable:
        """cos and sin in fp32 for positions below ``longest`` at least, by the model's own rotary module."""
        step = 1 if self.settings.rope_follows_length else TABLE_STEP
        positions = -(-longest // step) * step
        key = (rope, positions)
        if key not in self.tables:
            if self.settings.rope_follows_length:
                self.tables.clear()
            device = self.norm.weight.device
            like = torch.empty((), dtype=torch.float32, device=device)
            places = torch.arange(positions, device=device)[None]
            rotary: Any = self.decoder.rotary_emb
            with torch.no_grad():
                cos, sin = rotary(like, places, rope) if rope else rotary(like, places)
            self.tables[key] = RotaryTable(cos[0].contiguous(), sin[0].contiguous())
        return self.tables[key]
