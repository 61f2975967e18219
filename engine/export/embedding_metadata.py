"""Values an embedding GGUF must hold, worked out anew from config.json and modules.json. Light.

The converter has its own table on purpose: a mistake in one of them shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..models.sentence_folder import SentenceFolder

POOLING = {"mean": 1, "cls": 2, "last": 3}
"""llama.cpp's numbers."""
RELATIVE = 1e-6
"""float32 rounding of a value."""

# model_type -> (architecture in the GGUF, name of the epsilon there, its name in config.json, bidirectional)
FAMILIES = {
    "bert": ("bert", "layer_norm_epsilon", "layer_norm_eps", True),
    "xlm-roberta": ("bert", "layer_norm_epsilon", "layer_norm_eps", True),
    "roberta": ("bert", "layer_norm_epsilon", "layer_norm_eps", True),
    "camembert": ("bert", "layer_norm_epsilon", "layer_norm_eps", True),
    "modernbert": ("modern-bert", "layer_norm_epsilon", "norm_eps", True),
    "gemma3_text": ("gemma-embedding", "layer_norm_rms_epsilon", "rms_norm_eps", True),
    "qwen3": ("qwen3", "layer_norm_rms_epsilon", "rms_norm_eps", False),
    "qwen2": ("qwen2", "layer_norm_rms_epsilon", "rms_norm_eps", False),
    "mistral": ("llama", "layer_norm_rms_epsilon", "rms_norm_eps", False),
    "llama": ("llama", "layer_norm_rms_epsilon", "rms_norm_eps", False),
}


ROBERTAS = ("xlm-roberta", "roberta", "camembert")
"""They count positions from the padding's id up."""


def expected_values(sentence: SentenceFolder, config: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF key, without its architecture prefix -> value.

    Args:
        sentence: the folder.
        config: config.json completed by its class's defaults (``AutoConfig(...).to_dict()``).
    """
    model_type = config["model_type"]
    architecture, epsilon, epsilon_name, bidirectional = FAMILIES[model_type]
    positions = int(config["max_position_embeddings"])
    if not bidirectional:  # llama.cpp has no windows for these
        positions = min(positions, int(config.get("sliding_window") or positions))
    values: dict[str, Any] = {
        "general.architecture": architecture,
        "block_count": config["num_hidden_layers"],
        "context_length": positions,
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        f"attention.{epsilon}": config[epsilon_name],
        "pooling_type": POOLING[sentence.pooling],
    }
    if config.get("num_key_value_heads"):
        values["attention.head_count_kv"] = config["num_key_value_heads"]
    if bidirectional:
        values["attention.causal"] = False
    if model_type in ROBERTAS:
        values["context_length"] = positions - int(config["pad_token_id"]) - 1
    if model_type in ("bert", *ROBERTAS):
        values["tokenizer.ggml.token_type_count"] = config["type_vocab_size"]
    if model_type == "modernbert":
        values["attention.sliding_window"] = config["local_attention"]
    if model_type == "gemma3_text":
        values["attention.sliding_window"] = config["sliding_window"]
    values |= _rope(config.get("rope_parameters") or {})
    for number, dense in enumerate(sentence.dense, 2):
        values |= {f"dense_{number}_feat_in": dense.inputs, f"dense_{number}_feat_out": dense.outputs}
    return values


def _rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    if "full_attention" in rope:
        return {
            "rope.freq_base": rope["full_attention"]["rope_theta"],
            "rope.freq_base_swa": rope["sliding_attention"]["rope_theta"],
        }
    return {"rope.freq_base": rope["rope_theta"]} if "rope_theta" in rope else {}


def wrong_values(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, list[Any]]:
    """GGUF key -> [value in the file, value the model was trained with], where they differ."""
    architecture = wanted["general.architecture"]
    found = {}
    for name, value in wanted.items():
        key = name if name.startswith(("general.", "tokenizer.")) else f"{architecture}.{name}"
        has = metadata.get(key)
        if not _same(has, value):
            found[key] = [has, value]
    return found


def _same(has: Any, wants: Any) -> bool:
    if has is None or isinstance(wants, str | bool) or isinstance(has, str):
        return bool(has == wants)
    return math.isclose(float(has), float(wants), rel_tol=RELATIVE)
