"""Configuration values of a GGUF, and those the model's config.json asks for. Light (reads headers with
gguf)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import WhetError

TOKENIZER_ARRAYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores")
RELATIVE = 1e-6
"""float32 rounding of a value; an epsilon of 1e-5 for 1e-6 is far outside."""

# GGUF key without its architecture prefix -> name in config.json.
PAIRS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
}
# llama.cpp fills in a default or derives these when the file lacks them; the others must be there.
OPTIONAL = {
    "vocab_size",
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "expert_count",
    "expert_used_count",
    "attention.head_count_kv",
}


def read_metadata(gguf: Path) -> dict[str, Any]:
    """Scalar and short string values by key, and the names of the tensors under ``"tensors"``.

    Raises WhetError ``gguf.unreadable`` for a file that is no GGUF, or was cut off.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
    except (ValueError, IndexError) as error:
        raise WhetError(
            "gguf.unreadable",
            f"{gguf} is no GGUF file, or not a whole one: {error}.",
            "Name another file, or write or download this one again.",
        ) from error
    values: dict[str, Any] = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith(TOKENIZER_ARRAYS) and name != "tokenizer.ggml.token_type"
    }
    values = {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
    return {**values, "tensors": [tensor.name for tensor in reader.tensors]}


def differences(metadata: dict[str, Any], config: dict[str, Any]) -> dict[str, list[Any]]:
    """GGUF key -> [value in the file, value the model was trained with], where they differ."""
    architecture = metadata.get("general.architecture", "")
    text = {**config, **(config.get("text_config") or {})}
    rope = text.get("rope_parameters") or {}
    wanted = {**text, "rope_theta": rope.get("rope_theta", text.get("rope_theta"))}
    found: dict[str, list[Any]] = {}
    for key, name in PAIRS.items():
        has, wants = metadata.get(f"{architecture}.{key}"), wanted.get(name)
        if wants is None or (has is None and key in OPTIONAL):
            continue
        if has is None or not _same(has, wants):
            found[f"{architecture}.{key}"] = [has, wants]
    return found | _rope_differences(metadata, architecture, rope)


def _rope_differences(
    metadata: dict[str, Any], architecture: str, rope: dict[str, Any]
) -> dict[str, list[Any]]:
    kind = rope.get("rope_type", "default")
    has = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind == "llama3":
        present = "rope_freqs.weight" in metadata["tensors"]
        return {} if present else {"rope_freqs.weight": [None, "llama3 frequency factors"]}
    if kind in ("linear", "yarn"):
        factor = metadata.get(f"{architecture}.rope.scaling.factor")
        if has != kind or factor is None or not _same(factor, rope["factor"]):
            return {f"{architecture}.rope.scaling": [[has, factor], [kind, rope["factor"]]]}
    elif kind == "default" and has != "none":
        return {f"{architecture}.rope.scaling.type": [has, "none"]}
    return {}


def _same(has: Any, wants: Any) -> bool:
    if isinstance(has, list):
        return all(_same(value, wants) for value in has)
    return math.isclose(float(has), float(wants), rel_tol=RELATIVE)
