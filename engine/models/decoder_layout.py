"""Parameter counts of a known decoder from its configuration alone: layers, norms, embedding and head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .families import Family
from .families.fast_layout import sparse_layers
from .layout import LinearModule, Parameters


def from_config(
    family: Family,
    config: Mapping[str, Any],
    *,
    hidden_size: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate_size: int,
    vocab_size: int,
    rows: int,
    tied: bool,
) -> Parameters:
    """Count a decoder of the family.

    Args:
        family: its layout; an unknown one is counted like Llama.
        config: config.json over the family's defaults.
        rows: of the embedding, which may be more than ``vocab_size``.
        tied: the head is the embedding.
    """
    attention = (
        _latent_attention(config, hidden_size, heads, layers)
        if family.attention == "latent"
        else _attention(family, config, hidden_size, heads * head_dim, kv_heads * head_dim, layers)
    )
    sparse = sum(sparse_layers(config)) if family.experts else 0
    modules = [*attention, *_mlp(family, config, "mlp", hidden_size, intermediate_size, layers - sparse)]
    if sparse:
        modules += _experts(family, config, hidden_size, sparse)
    embedding = rows * hidden_size
    head = 0 if tied else embedding
    if not tied:
        modules.append(LinearModule(pattern="lm_head", inputs=hidden_size, outputs=rows, count=1))
    norms = layers * family.layer_norms * hidden_size + hidden_size
    if family.qk_norm:
        norms += layers * 2 * head_dim
    if family.attention == "latent":
        norms += layers * ((config.get("q_lora_rank") or 0) + config["kv_lora_rank"])
    inside = sum(module.parameters for module in modules if module.pattern != "lm_head")
    return Parameters(
        total=embedding + head + norms + inside, embedding=embedding, head=head, norms=norms, linear=modules
    )


def _linear(name: str, inputs: int, outputs: int, count: int, bias: bool = False) -> LinearModule:
    return LinearModule(
        pattern=f"model.layers.*.{name}", inputs=inputs, outputs=outputs, count=count, bias=bias
    )


def _attention(
    family: Family, config: Mapping[str, Any], hidden: int, q: int, kv: int, layers: int
) -> list[LinearModule]:
    out_bias = family.attention_bias == "config" and bool(config.get("attention_bias", False))
    bias = out_bias or family.attention_bias == "qkv"
    output = _linear("self_attn.o_proj", q, hidden, layers, out_bias)
    if family.attention == "fused":
        return [_linear("self_attn.qkv_proj", hidden, q + 2 * kv, layers, bias), output]
    return [
        _linear("self_attn.q_proj", hidden, q, layers, bias),
        _linear("self_attn.k_proj", hidden, kv, layers, bias),
        _linear("self_attn.v_proj", hidden, kv, layers, bias),
        output,
    ]


def _latent_attention(config: Mapping[str, Any], hidden: int, heads: int, layers: int) -> list[LinearModule]:
    """DeepSeek's attention: queries (optionally) and keys and values pass a low-rank bottleneck."""
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q_rank, kv_rank = config.get("q_lora_rank"), config["kv_lora_rank"]
    bias, queries = bool(config.get("attention_bias", False)), heads * (nope + rope)
    modules = (
        [_linear("self_attn.q_proj", hidden, queries, layers)]
        if q_rank is None
        else [
            _linear("self_attn.q_a_proj", hidden, q_rank, layers, bias),
            _linear("self_attn.q_b_proj", q_rank, queries, layers),
        ]
    )
    return [
        *modules,
        _linear("self_attn.kv_a_proj_with_mqa", hidden, kv_rank + rope, layers, bias),
        _linear("self_attn.kv_b_proj", kv_rank, heads * (nope + value), layers),
        _linear("self_attn.o_proj", heads * value, hidden, layers, bias),
    ]


def _mlp(
    family: Family, config: Mapping[str, Any], path: str, hidden: int, width: int, count: int
) -> list[LinearModule]:
    """A gated MLP; nothing where no layer has one."""
    if count == 0:
        return []
    bias = family.mlp_bias and bool(config.get("mlp_bias", False))
    down = _linear(f"{path}.down_proj", width, hidden, count, bias)
    if family.fused_mlp:
        return [_linear(f"{path}.gate_up_proj", hidden, 2 * width, count, bias), down]
    return [
        _linear(f"{path}.gate_proj", hidden, width, count, bias),
        _linear(f"{path}.up_proj", hidden, width, count, bias),
        down,
    ]


def _experts(family: Family, config: Mapping[str, Any], hidden: int, sparse: int) -> list[LinearModule]:
    """Router, stacked experts and the shared MLP of the sparse layers."""
    if family.experts is None:
        raise ValueError(f"{family.name} has no experts")
    number, width = expert_count(config), int(config[family.experts.width])
    gate, up, down = family.experts.names
    router = _linear("mlp.gate", hidden, number, sparse)
    gate_up = _linear("mlp.experts.gate_up_proj", hidden, 2 * width, sparse * number)
    stacked_down = _linear("mlp.experts.down_proj", width, hidden, sparse * number)
    shared = shared_width(family, config)
    return [
        router.model_copy(update={"aliases": ("gate",)}),
        gate_up.model_copy(update={"aliases": (gate, up)}),
        stacked_down.model_copy(update={"aliases": (down,)}),
        *_mlp(family, config, "mlp.shared_experts", hidden, shared, sparse if shared else 0),
    ]


def expert_count(config: Mapping[str, Any]) -> int:
    """Experts a sparse layer, under the key that the file uses: its own stands before a family's default."""
    for key in ("num_local_experts", "n_routed_experts", "num_experts"):
        if config.get(key) is not None:
            return int(config[key])
    return 0


def shared_width(family: Family, config: Mapping[str, Any]) -> int:
    """Width of the MLP that every token passes beside its experts."""
    if family.experts is None or family.experts.shared is None:
        return 0
    return int(config.get(family.experts.shared) or 0) * int(config[family.experts.width])


def sparse_mlp_width(family: Family, config: Mapping[str, Any], intermediate_size: int) -> int:
    """The widest MLP that a token passes in one layer: all its experts side by side, or a dense layer's.

    0 without experts.
    """
    if family.experts is None or not any(sparse_layers(config)):
        return 0
    chosen = int(config.get("num_experts_per_tok") or 1) * int(config[family.experts.width])
    through = chosen + shared_width(family, config)
    return through if all(sparse_layers(config)) else max(through, intermediate_size)
