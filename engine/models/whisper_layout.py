"""Parameter counts of Whisper from its configuration alone (arXiv:2212.04356): encoder and decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .layout import LinearModule, Parameters

KERNEL = 3
"""Width of the two convolutions before the encoder."""


def from_config(config: Mapping[str, Any], rows: int) -> Parameters:
    """Count what transformers loads; the head is the decoder's embedding.

    Args:
        config: config.json, with every size that WhisperConfig writes.
        rows: of the token embedding.
    """
    width, mels = int(config["d_model"]), int(config["num_mel_bins"])
    modules: list[LinearModule] = []
    norms = 0
    for part, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        layers, inside = int(config[f"{part}_layers"]), int(config[f"{part}_ffn_dim"])
        sizes = {"fc1": (width, inside), "fc2": (inside, width)}
        for attention in attentions:
            names = ("q_proj", "k_proj", "v_proj", "out_proj")
            sizes |= {f"{attention}.{name}": (width, width) for name in names}
        modules += [
            LinearModule(
                pattern=f"model.{part}.layers.*.{name}",
                inputs=inputs,
                outputs=outputs,
                count=layers,
                bias=not name.endswith("k_proj"),
            )
            for name, (inputs, outputs) in sizes.items()
        ]
        norms += (layers * (len(attentions) + 1) + 1) * 2 * width
    convolutions = KERNEL * width * (mels + width) + 2 * width
    tables = (int(config["max_source_positions"]) + int(config["max_target_positions"])) * width
    embedding = rows * width
    rest = norms + convolutions + tables
    return Parameters(
        total=embedding + rest + sum(module.parameters for module in modules),
        embedding=embedding,
        head=0,
        norms=rest,
        linear=modules,
    )
