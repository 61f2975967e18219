"""What a family descriptor says. Light: `plan` reads it without torch, the worker resolves its names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .capability import Capability, Experimental, Supported, Unsupported
from .fast_layout import FastLayout

__all__ = [
    "EVERYTHING",
    "LINEAR_NAMES",
    "Capability",
    "EncoderLayout",
    "Experimental",
    "Experts",
    "Family",
    "FastLayout",
    "Supported",
    "Unsupported",
]

AttentionBias = Literal["none", "config", "qkv"]
AttentionKind = Literal["split", "fused", "latent"]

LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED_NAMES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
LATENT_NAMES = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")

EVERYTHING: dict[str, Capability] = {
    name: Supported() for name in ("sft", "lora", "dora", "full", "nf4", "int8", "fp8", "packing")
}

NO_FP16: dict[str, Capability] = {
    "compute_fp16": Unsupported("its hidden states grow beyond 65,504, fp16's largest number, and become NaN")
}
"""Of families that were trained in bf16 and use its range."""

_EXPERTS_16_BIT = Experimental("the experts stay in 16 bits: bitsandbytes quantises linear modules only")

MIXTURE: dict[str, Capability] = EVERYTHING | {
    "nf4": _EXPERTS_16_BIT,
    "int8": _EXPERTS_16_BIT,
    "fp8": Experimental("the experts stay in 16 bits: FP8 is for linear modules only"),
    "dora": Experimental(
        "PEFT adapts the experts' stacked weights by plain LoRA only: name attention layers"
    ),
}
"""Of mixtures of experts, whose weights are three-dimensional parameters and no linear modules."""

_ENCODER = "an encoder has no next-token head; it is trained by the embedding and classification methods"

ENCODING: dict[str, Capability] = EVERYTHING | {
    "sft": Unsupported(_ENCODER),
    "packing": Unsupported("its attention is not causal: packed rows need per-row masks"),
}

NO_FAST_ENCODER = Unsupported("an encoder is no causal model; its own fast path is another")
"""Of families with an encoder layout, whose ``slow`` says what the encoders' fast path lacks."""


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP.

    transformers stacks all experts of a layer in two parameters, ``experts.gate_up_proj`` (X, 2F, D), gate's
    rows first, and ``experts.down_proj`` (X, D, F); the router is ``gate.weight`` (X, D).

    Args:
        width: config key of an expert's MLP width.
        names: of gate, up and down in published checkpoints; PEFT takes these names as adapter targets.
        shared: config key of how many experts every token passes, side by side in one wider MLP.
    """

    width: str = "moe_intermediate_size"
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    shared: str | None = None


@dataclass(frozen=True)
class EncoderLayout:
    """Names inside a bidirectional encoder, for counting and for adapters.

    Args:
        layers: path of the layer list.
        qkv: paths of the query, key and value projections in a layer; one entry where they are fused.
        output: of the attention.
        mlp: paths of the two (ungated) or the fused gate-and-up and the down projection.
        positions: ``absolute`` is a table of positions, ``relative`` one bias a distance bucket and head,
            ``rotary`` has no parameters.
        gated: the first MLP projection is twice as wide.
        pooler: the base model ends in a dense layer over the first token.
        biases: every linear layer and norm has one; otherwise config keys decide.
        pre_norm: norms stand before attention and MLP, and one after the last layer.
        norms: paths of the attention's and the MLP's norm in a layer.
        words: path of the token embedding; those of positions and token types stand beside it.
        embedding_norm: path of the norm over the embeddings' sum.
        final_norm: path of the norm after the last layer, where norms come first.
        after_padding: positions count from the padding id + 1 up, not from 0.
        slow: why layers run on transformers; None where the fast path has them.
    """

    layers: str = "encoder.layer"
    qkv: tuple[str, ...] = ("attention.self.query", "attention.self.key", "attention.self.value")
    output: str = "attention.output.dense"
    mlp: tuple[str, str] = ("intermediate.dense", "output.dense")
    positions: Literal["absolute", "relative", "rotary"] = "absolute"
    token_types: bool = True
    gated: bool = False
    pooler: bool = True
    biases: bool = True
    pre_norm: bool = False
    norms: tuple[str, str] = ("attention.output.LayerNorm", "output.LayerNorm")
    words: str = "embeddings.word_embeddings"
    embedding_norm: str = "embeddings.LayerNorm"
    final_norm: str | None = None
    after_padding: bool = False
    slow: str | None = None


@dataclass(frozen=True)
class Family:
    """One model family: how it is recognised, what its layers hold and what whet may do with it.

    Args:
        name: ours, e.g. ``qwen2``.
        model_types: values of ``model_type`` in config.json that are this family.
        fast: what the decoders' fast path must know, or why the family does not run on it.
        target_modules: leaf names of the linear layers an adapter takes by default.
        chat_template: the template that fits this family's chat models, None where no single one does.
        attention: ``split`` is q/k/v/o_proj, ``fused`` qkv_proj and o_proj, ``latent`` DeepSeek's low-rank
            attention (arXiv:2405.04434).
        attention_bias: which attention projections carry a bias; ``config`` reads ``attention_bias``
            (then q, k, v and o have one), ``qkv`` is always q, k and v.
        mlp_bias: the MLP may carry biases (config key ``mlp_bias``).
        fused_mlp: gate and up are one layer, gate_up_proj.
        layer_norms: norms of the full width in each layer.
        qk_norm: q and k are normalised a head, with one weight of ``head_dim`` each.
        eager_attention: transformers has no fused attention for it and holds all scores.
        experts: of mixtures.
        encoder: the layout of an encoder; None for decoders.
        exact: the layout covers the whole model; False where it has parts the descriptor leaves out.
        defaults: the configuration class's values where config.json is silent.
        capabilities: sft, lora, dora, full, nf4, int8, fp8, packing, compute_fp16. What the GGUF writer can
            do is its own to say (:mod:`whet.engine.export.gguf.architectures`).
    """

    name: str
    model_types: tuple[str, ...]
    fast: FastLayout | Unsupported
    target_modules: tuple[str, ...] = LINEAR_NAMES
    chat_template: str | None = None
    attention: AttentionKind = "split"
    attention_bias: AttentionBias = "none"
    mlp_bias: bool = False
    fused_mlp: bool = False
    layer_norms: int = 2
    qk_norm: bool = False
    eager_attention: bool = False
    experts: Experts | None = None
    encoder: EncoderLayout | None = None
    exact: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    capabilities: Mapping[str, Capability] = field(default_factory=lambda: dict(EVERYTHING))

    @property
    def slow(self) -> str | None:
        """Why the family trains on plain transformers; None where it has a fast path."""
        if self.encoder is not None:
            return self.encoder.slow
        return self.fast.reason if isinstance(self.fast, Unsupported) else None
