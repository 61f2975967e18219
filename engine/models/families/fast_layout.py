"""What the fast path must know of a family's decoder layer, and what one configuration makes of it. Light.

:class:`FastLayout` belongs to the family: names and formulas. :func:`fast_settings` reads a configuration
with it and gives plain numbers a layer, or the reason why this very model trains on plain transformers.

The layer, all decoders here (x the residual stream, r the residual multiplier, 1 as a rule)::

    x = x + r * post_attention(attention(norm(x)))
    x = x + r * post_mlp(mlp(norm(x)))          post_*: identity but in Gemma 2 and 3

transformers rounds RMSNorm to the tensor's type before the weight is multiplied where ``norm_offset`` is 0,
and after it where it is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .capability import Unsupported

Activation = Literal["swiglu", "geglu", "geglu_tanh"]

ACTIVATIONS: dict[str, Activation] = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
}
"""transformers' names of the gate's function -> the kernel's."""

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rotary types whose frequencies follow the longest sequence of a batch."""


@dataclass(frozen=True)
class FastLayout:
    """Names and formulas of one family's decoder; config keys are those of the text configuration.

    Args:
        decoder: attribute of the causal model, which holds embed_tokens, layers, norm and rotary_emb.
        activation: of the MLP's gate where the config says what it said for every published model.
        activation_key: config key that may say otherwise.
        tanh_always: ``gelu`` in the config means the tanh form too (Gemma 1).
        norm_offset: added to RMSNorm's weight, 0 or 1.
        input_norm, mlp_norm: attributes of the norms before attention and before the MLP.
        post_norms: attributes of the norms after attention and after the MLP, before the residual is added.
        qk_norm: attributes, on the attention module, of the norms over q and k heads, before the rotation.
        fused_qkv, fused_gate_up: attributes of the fused projections (q rows, then k, then v; gate, then up).
        embed_scale: the embedding is multiplied by sqrt(hidden_size) rounded to the weights' type. In
            transformers 5.23 ``embed_tokens`` does that when it is called, earlier releases did it in the
            decoder: taking rows of its weight and multiplying is right in both.
        embedding_multiplier, residual_multiplier: config keys of factors on the embedding and on what a half
            layer adds.
        logits_divisor: config key of what the logits are divided by.
        query_scale: config key the attention scale comes from; None is 1/sqrt(head_dim).
        query_scale_power: the scale is that value to this power: -0.5 for a size, 1 for a factor.
        attention_softcap, final_softcap: config keys of c in c*tanh(s/c) on scores and on logits.
        window: which layers attend to the last ``sliding_window`` positions only, their own included.
        rope_by_layer_type: one rotary table a layer type: ``rotary_emb(x, position_ids, layer_type)``.
        no_rope: config key of a list with 0 for each layer that does not rotate q and k.
        experts: the MLP of sparse layers is ``mlp.gate`` (returns logits, weights and indices of the chosen
            experts) and ``mlp.experts`` with stacked ``gate_up_proj`` and ``down_proj``.
    """

    decoder: str = "model"
    activation: Activation = "swiglu"
    activation_key: str = "hidden_act"
    tanh_always: bool = False
    norm_offset: float = 0.0
    input_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    post_norms: tuple[str, str] | None = None
    qk_norm: tuple[str, str] | None = None
    fused_qkv: str | None = None
    fused_gate_up: str | None = None
    embed_scale: bool = False
    embedding_multiplier: str | None = None
    residual_multiplier: str | None = None
    logits_divisor: str | None = None
    query_scale: str | None = None
    query_scale_power: float = -0.5
    attention_softcap: str | None = None
    final_softcap: str | None = None
    window: Literal["none", "all", "by_layer_type"] = "none"
    rope_by_layer_type: bool = False
    no_rope: str | None = None
    experts: bool = False


@dataclass(frozen=True)
class FastSettings:
    """A configuration, read. Sequences have one entry a decoder layer.

    Args:
        activation: of the MLP's gate.
        attention_scale: multiplies the scores.
        windows: positions a query sees, itself included; None is all before it.
        ropes: argument ``layer_type`` of ``rotary_emb`` ("" where it takes none); None rotates nothing.
        rotary_dim: width of the rotated part of a head, the first elements.
        rope_follows_length: the rotary table must be remade when the longest sequence of the batch grows
            (transformers takes it from the largest position).
        sparse: the MLP is a mixture of experts.
        embed_scale: sqrt(hidden_size) before rounding to the weights' type, 1.0 elsewhere.
        logit_scale: multiplies the logits, before the softcap.
    """

    activation: Activation
    attention_scale: float
    windows: tuple[int | None, ...]
    ropes: tuple[str | None, ...]
    rotary_dim: int
    rope_follows_length: bool
    sparse: tuple[bool, ...]
    embed_scale: float = 1.0
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_scale: float = 1.0
    attention_softcap: float | None = None
    final_softcap: float | None = None


def fast_settings(layout: FastLayout, config: Mapping[str, Any]) -> FastSettings | Unsupported:
    """Read a configuration with its family's layout.

    Args:
        layout: of the family.
        config: ``model.config.get_text_config().to_dict()``, or config.json over the family's ``defaults``.
    """
    activation = _activation(layout, config)
    reason = _refusal(config)
    if activation is None:
        reason = f"no fused kernel for the activation {config[layout.activation_key]!r}"
    if activation is None or reason is not None:
        return Unsupported(str(reason))
    layers = int(config["num_hidden_layers"])
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    kinds = layer_types(config)

    def factor(key: str | None) -> float:
        value = config.get(key) if key else None
        return 1.0 if value is None else float(value)

    def softcap(key: str | None) -> float | None:
        value = config.get(key) if key else None
        return None if value is None else float(value)

    scale = float(config[layout.query_scale]) if layout.query_scale else float(head_dim)
    return FastSettings(
        activation=activation,
        attention_scale=scale**layout.query_scale_power,
        windows=_windows(layout, config, kinds),
        ropes=_ropes(layout, config, kinds),
        rotary_dim=int(head_dim * _partial_rotary_factor(config)),
        rope_follows_length=any(one in LENGTH_DEPENDENT for one in _rope_types(config)),
        sparse=sparse_layers(config) if layout.experts else (False,) * layers,
        embed_scale=hidden**0.5 if layout.embed_scale else 1.0,
        embedding_multiplier=factor(layout.embedding_multiplier),
        residual_multiplier=factor(layout.residual_multiplier),
        logit_scale=1.0 / factor(layout.logits_divisor),
        attention_softcap=softcap(layout.attention_softcap),
        final_softcap=softcap(layout.final_softcap),
    )


def _activation(layout: FastLayout, config: Mapping[str, Any]) -> Activation | None:
    said = config.get(layout.activation_key)
    if said is None:
        return layout.activation
    kind = ACTIVATIONS.get(said)
    return "geglu_tanh" if kind == "geglu" and layout.tanh_always else kind


def _refusal(config: Mapping[str, Any]) -> str | None:
    """What a configuration may switch on that the fused layer does not compute."""
    for key in ("attention_dropout", "resid_pdrop", "router_jitter_noise"):
        if config.get(key):
            return f"{key}={config[key]}: the fused layer draws no random numbers"
    if config.get("output_router_logits"):
        return "output_router_logits: the router's balancing loss is not fused"
    if config.get("use_bidirectional_attention"):
        return "use_bidirectional_attention: the fused layer is causal"
    return None


def layer_types(config: Mapping[str, Any]) -> tuple[str, ...]:
    """``sliding_attention`` or ``full_attention`` of each layer; older files state a pattern instead."""
    layers = int(config["num_hidden_layers"])
    stated: Sequence[str] | None = config.get("layer_types")
    if stated is not None:
        return tuple(stated)

    def sliding(layer: int) -> bool:
        if "sliding_window_pattern" in config:  # Gemma: every n-th layer sees everything
            return bool((layer + 1) % int(config["sliding_window_pattern"]))
        if config.get("use_sliding_window") and "max_window_layers" in config:  # Qwen: the upper layers
            return layer >= int(config["max_window_layers"])
        if config.get("use_sliding_window"):  # SmolLM3: those that do not rotate
            return not rotating_layers(config)[layer]
        return False

    return tuple("sliding_attention" if sliding(layer) else "full_attention" for layer in range(layers))


def rotating_layers(config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Whether each layer rotates q and k; SmolLM3 leaves out every fourth (``no_rope_layers`` has 1 for
    those that do)."""
    layers = int(config["num_hidden_layers"])
    if config.get("no_rope_layers") is not None:
        return tuple(bool(one) for one in config["no_rope_layers"][:layers])
    interval = config.get("no_rope_layer_interval")
    return tuple(interval is None or bool((layer + 1) % int(interval)) for layer in range(layers))


def sparse_layers(config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Whether each layer's MLP is a mixture of experts, by whichever of the three rules the file states."""
    dense_first = int(config.get("first_k_dense_replace") or 0)
    step = int(config.get("decoder_sparse_step") or 1)
    dense = set(config.get("mlp_only_layers") or ())
    return tuple(
        layer >= dense_first and layer not in dense and (layer + 1) % step == 0
        for layer in range(int(config["num_hidden_layers"]))
    )


def _windows(layout: FastLayout, config: Mapping[str, Any], kinds: Sequence[str]) -> tuple[int | None, ...]:
    size = config.get("sliding_window")
    if layout.window == "none" or size is None or not config.get("use_sliding_window", True):
        return (None,) * len(kinds)
    return tuple(
        int(size) if layout.window == "all" or kind == "sliding_attention" else None for kind in kinds
    )


def _ropes(layout: FastLayout, config: Mapping[str, Any], kinds: Sequence[str]) -> tuple[str | None, ...]:
    names = tuple(kinds) if layout.rope_by_layer_type else ("",) * len(kinds)
    if layout.no_rope is None:
        return names
    return tuple(name if on else None for name, on in zip(names, rotating_layers(config), strict=True))


def _rope_parameters(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rotary settings, one entry a table; transformers 5 writes rope_parameters, 4 wrote rope_scaling."""
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = [value for value in stated.values() if isinstance(value, Mapping)]
    return nested or [stated]


def _rope_types(config: Mapping[str, Any]) -> list[str]:
    types = [str(one.get("rope_type", one.get("type", "default"))) for one in _rope_parameters(config)]
    if config.get("model_type") == "phi3":  # its class reads both as longrope
        return ["longrope" if one in ("su", "yarn") else one for one in types]
    return types


def _partial_rotary_factor(config: Mapping[str, Any]) -> float:
    inside = _rope_parameters(config)[0].get("partial_rotary_factor")
    return float(inside if inside is not None else config.get("partial_rotary_factor") or 1.0)
