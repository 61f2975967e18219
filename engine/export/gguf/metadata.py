"""The key/values of a GGUF that come from config.json."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .architectures import Architecture, Config
from .rope import read_rope
from .types import find_type

if TYPE_CHECKING:
    from gguf import GGUFWriter

# llama.cpp switches a model's handling of added tokens by these parts of its name, and then fails to load it.
TRIGGERS = re.compile(r"(?i)(?<=phi)-?(?=3)|(?<=modern)-(?=bert)")
NAME_LENGTH = 64


def clean_name(name: str) -> str:
    """A model's name without control characters, paths and the parts llama.cpp acts upon."""
    printable = "".join(c for c in name.rstrip("/").rpartition("/")[2] if c.isprintable()).strip()
    return TRIGGERS.sub("_", printable)[:NAME_LENGTH] or "model"


def write_general(writer: GGUFWriter, name: str, dtype: str) -> None:
    from gguf import GGML_QUANT_VERSION

    writer.add_type("model")
    writer.add_name(clean_name(name))
    writer.add_file_type(find_type(dtype).file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def write_hyperparameters(writer: GGUFWriter, architecture: Architecture, config: Config, rows: int) -> None:
    """``{arch}.*``: sizes, heads, epsilon, rope. ``rows`` is the embedding's number of rows."""
    head_dim = architecture.head_dim(config)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(context_length(architecture, config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_vocab_size(rows)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(architecture.kv_heads(config))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", architecture.default_norm_epsilon))
    _write_rope(writer, architecture, config, head_dim)


def context_length(architecture: Architecture, config: Config) -> int:
    """Positions for which llama.cpp computes what the model does.

    It has no sliding window for these architectures, so a window in force ends the context there.
    """
    positions = int(config.get("max_position_embeddings") or 2048)
    windowed = config.get("use_sliding_window", architecture.windowed)
    window = config.get("sliding_window") if windowed else None
    return min(positions, int(window)) if window else positions


def _write_rope(writer: GGUFWriter, architecture: Architecture, config: Config, head_dim: int) -> None:
    from gguf import RopeScalingType

    rope = read_rope(config, architecture.default_rope_theta)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope.theta)
    # Llama 3's scaling is a tensor, see convert.py.
    if rope.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope.scaling["factor"]))
    elif rope.kind == "yarn":
        original = rope.scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope.scaling["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(original))
