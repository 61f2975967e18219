"""Parameter counts of a known encoder from its configuration alone: the base model, without a task's head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .families import Family
from .layout import LinearModule, Parameters


def from_config(
    family: Family,
    config: Mapping[str, Any],
    *,
    hidden_size: int,
    layers: int,
    heads: int,
    intermediate_size: int,
    rows: int,
) -> Parameters:
    """Count what ``AutoModel`` loads.

    Args:
        family: with an encoder layout.
        config: config.json over the family's defaults.
        rows: of the token embedding.
    """
    layout = family.encoder
    if layout is None:
        raise ValueError(f"{family.name} is not an encoder")
    attention_bias = layout.biases or bool(config.get("attention_bias", False))
    mlp_bias = layout.biases or bool(config.get("mlp_bias", False))

    def linear(name: str, inputs: int, outputs: int, bias: bool) -> LinearModule:
        pattern = f"{layout.layers}.*.{name}"
        return LinearModule(pattern=pattern, inputs=inputs, outputs=outputs, count=layers, bias=bias)

    projections = 3 // len(layout.qkv)  # in each of the layers named
    widened = (2 if layout.gated else 1) * intermediate_size
    modules = [
        *(linear(name, hidden_size, projections * hidden_size, attention_bias) for name in layout.qkv),
        linear(layout.output, hidden_size, hidden_size, attention_bias),
        linear(layout.mlp[0], hidden_size, widened, mlp_bias),
        linear(layout.mlp[1], intermediate_size, hidden_size, mlp_bias),
    ]
    if layout.pooler:
        modules.append(
            LinearModule(pattern="pooler.dense", inputs=hidden_size, outputs=hidden_size, count=1, bias=True)
        )
    norm_bias = layout.biases or bool(config.get("norm_bias", False))
    # After the embedding and twice a layer; with norms first, the first layer's is the embedding's and one
    # more stands at the end.
    norms = (1 + 2 * layers) * hidden_size * (2 if norm_bias else 1)
    tables = _tables(family, config, hidden_size, heads)
    embedding = rows * hidden_size
    inside = sum(module.parameters for module in modules)
    return Parameters(
        total=embedding + tables + norms + inside,
        embedding=embedding,
        head=0,
        norms=norms + tables,
        linear=modules,
    )


def _tables(family: Family, config: Mapping[str, Any], hidden: int, heads: int) -> int:
    """Position and token-type tables."""
    layout = family.encoder
    if layout is None or layout.positions == "rotary":
        return 0
    tables = int(config["max_position_embeddings"]) * hidden
    if layout.token_types:
        tables += int(config["type_vocab_size"]) * hidden
    if layout.positions == "relative":  # beside the absolute table
        tables += int(config["relative_attention_num_buckets"]) * heads
    return tables
