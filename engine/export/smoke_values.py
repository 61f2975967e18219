"""Values a decoder's GGUF must hold, worked out anew from the model's configuration. Light.

The converter has tables of its own on purpose: a mistake in one of the two shows. Where a distribution hardly
moves (an epsilon of 1e-5 for 1e-6, rope scaling within a short text) this is what tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
"""config.json completed by its class's defaults (``AutoConfig(...).to_dict()``), its text part on top."""

RELATIVE = 1e-5
"""float32 rounding of a value and of factors computed from it; an epsilon of 1e-5 for 1e-6 is far outside."""


def _experts(config: Config) -> dict[str, Any]:
    return {
        "expert_count": config.get("num_local_experts") or config.get("num_experts"),
        "expert_used_count": config["num_experts_per_tok"],
    }


def _expert_width(config: Config) -> dict[str, Any]:
    return {"expert_feed_forward_length": config["moe_intermediate_size"]}


def _softcaps(config: Config) -> dict[str, Any]:
    return {f"{name}_logit_softcapping": config[f"{name}_logit_softcapping"] for name in ("attn", "final")}


def _last_softcap(config: Config) -> dict[str, Any]:
    return {"final_logit_softcapping": config.get("final_logit_softcapping")}


def _window(config: Config) -> dict[str, Any]:
    return {"attention.sliding_window": config["sliding_window"], "windowed layers": _windowed(config)}


def _phi3(config: Config) -> dict[str, Any]:
    original = config.get("original_max_position_embeddings") or config["max_position_embeddings"]
    return {
        "attention.sliding_window": _in_force(config) or 0,
        "rope.scaling.original_context_length": original,
    }


def _granite(config: Config) -> dict[str, Any]:
    return {
        "attention.scale": config["attention_multiplier"],
        "embedding_scale": config["embedding_multiplier"],
        "residual_scale": config["residual_multiplier"],
        "logit_scale": config["logits_scaling"],
    }


# model_type -> architecture in the GGUF, and what it computes with beyond a llama's values.
FAMILIES: dict[str, tuple[str, tuple[Callable[[Config], dict[str, Any]], ...]]] = {
    "llama": ("llama", ()),
    "mistral": ("llama", ()),
    "mixtral": ("llama", (_experts,)),
    "qwen2": ("qwen2", ()),
    "qwen3": ("qwen3", ()),
    "qwen3_moe": ("qwen3moe", (_experts, _expert_width)),
    "gemma": ("gemma", ()),
    "gemma2": ("gemma2", (_softcaps, _window)),
    "gemma3_text": ("gemma3", (_last_softcap, _window)),
    "gemma3": ("gemma3", (_last_softcap, _window)),
    "phi3": ("phi3", (_phi3,)),
    "smollm3": ("smollm3", ()),
    "granite": ("granite", (_granite,)),
}
PERIODS = {"gemma2": 2, "gemma3": 6}
"""llama.cpp's own windows, by architecture: all layers but each n-th. It computes none for the others."""


def expected_values(config: Config, rope: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """GGUF key, without its architecture prefix -> value; a value of None means that the key must be absent.
    Empty for a family that is not in :data:`FAMILIES`.

    Args:
        config: as ``AutoConfig`` completes it.
        rope: of the loaded model: ``inverse_frequencies`` and ``attention_scaling``, where it has one kind.
    """
    if config["model_type"] not in FAMILIES:
        return {}
    architecture, more = FAMILIES[config["model_type"]]
    text = {**config, **(config.get("text_config") or {})}
    heads = text["num_attention_heads"]
    width = text.get("head_dim") or text["hidden_size"] // heads
    values: dict[str, Any] = {
        "general.architecture": architecture,
        "block_count": text["num_hidden_layers"],
        "context_length": _context(text, architecture),
        "embedding_length": text["hidden_size"],
        "feed_forward_length": text["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": text.get("num_key_value_heads") or heads,
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": text["rms_norm_eps"],
    }
    for part in more:
        values |= part(text)
    return values | _rope(text, width, rope or {})


def _in_force(config: Config) -> int | None:
    """The window, where any layer has it."""
    kinds = config.get("layer_types")
    if not config.get("use_sliding_window", True) or (kinds is not None and "sliding_attention" not in kinds):
        return None
    return config.get("sliding_window")


def _context(config: Config, architecture: str) -> int:
    """Positions for which llama.cpp computes what the model does: it knows few architectures' windows."""
    positions = int(config["max_position_embeddings"])
    window = _in_force(config) if architecture not in (*PERIODS, "gemma") else None
    return min(positions, window or positions)


def _windowed(config: Config) -> list[bool]:
    return [kind == "sliding_attention" for kind in config["layer_types"]]


def _rope(config: Config, width: int, model: Mapping[str, Any]) -> dict[str, Any]:
    """Base, share of the head, scaling; the factors of single frequencies as the loaded model has them."""
    every = config["rope_parameters"]
    own = every.get("full_attention") or every
    kind, share = own.get("rope_type", "default"), own.get("partial_rotary_factor") or 1.0
    values: dict[str, Any] = {
        "rope.freq_base": own["rope_theta"],
        "rope.dimension_count": int(width * share),
        "rope.scaling.type": None if kind in ("default", "llama3") else kind,
    }
    if "sliding_attention" in every:
        values["rope.freq_base_swa"] = every["sliding_attention"]["rope_theta"]
    if kind in ("linear", "yarn"):
        values["rope.scaling.factor"] = own["factor"]
    if kind in ("yarn", "longrope"):
        positions = config["max_position_embeddings"]
        original = config.get("original_max_position_embeddings") or own.get(
            "original_max_position_embeddings"
        )
        values["rope.scaling.original_context_length"] = original or positions
        paper = 0.1 * math.log(own["factor"]) + 1 if kind == "yarn" and own["factor"] > 1 else 1.0
        values["rope.scaling.attn_factor"] = model["attention_scaling"] / paper if model else None
    if kind == "llama3" and model:
        values["rope_freqs.weight"] = _divisors(own["rope_theta"], model["inverse_frequencies"])
    if kind == "longrope":
        values |= {f"rope_factors_{name}.weight": own[f"{name}_factor"] for name in ("short", "long")}
    return values


def _divisors(theta: float, inverse: list[float]) -> list[float]:
    """What plain frequencies are divided by to give the model's."""
    return [theta ** (-i / len(inverse)) / one for i, one in enumerate(inverse)]


def wrong_values(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, list[Any]]:
    """GGUF key -> [value in the file, value the model was trained with], where they differ."""
    architecture, found = wanted["general.architecture"], {}
    for name, value in wanted.items():
        key = name if name.startswith("general.") or name.endswith(".weight") else f"{architecture}.{name}"
        has = _found(metadata, architecture, key, name)
        if not _same(has, value):
            found[key] = [has, value]
    return found


def _found(metadata: Mapping[str, Any], architecture: str, key: str, name: str) -> Any:
    """The file's value, or what llama.cpp computes without it."""
    if name.endswith(".weight"):
        return metadata["rope_tensors"].get(name)
    has = metadata.get(key)
    if name == "windowed layers":
        has = metadata.get(f"{architecture}.attention.sliding_window_pattern", PERIODS[architecture])
        layers = range(int(metadata[f"{architecture}.block_count"]))
        return has if isinstance(has, list) else [bool((layer + 1) % has) for layer in layers]
    if name == "rope.scaling.type":
        return None if has == "none" else has
    return _without(name, metadata, architecture) if has is None else has


def _without(name: str, metadata: Mapping[str, Any], architecture: str) -> Any:
    """llama.cpp's value for a key that a file need not have."""

    def other(key: str) -> Any:
        return metadata.get(f"{architecture}.{key}")

    heads, width = other("attention.head_count"), other("embedding_length")
    head = other("attention.key_length") or (width // heads if heads and width else None)
    return {
        "attention.head_count_kv": heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "rope.freq_base": 10000.0,
        "rope.freq_base_swa": 10000.0,
        "rope.scaling.attn_factor": 1.0,
    }.get(name)


def _same(has: Any, wants: Any) -> bool:
    if isinstance(has, list) or isinstance(wants, list):
        both = isinstance(has, list) and isinstance(wants, list) and len(has) == len(wants)
        return both and all(_same(one, other) for one, other in zip(has, wants, strict=True))
    if has is None or wants is None or isinstance(wants, str | bool) or isinstance(has, str):
        return bool(has == wants)
    return math.isclose(float(has), float(wants), rel_tol=RELATIVE)
