"""Which models the converter knows: one descriptor a family. Light: plan asks it before anything is loaded.

To add a family, add a descriptor; `convert.py` needs no change as long as its differences are a matter of
names, permutation, keys and extra tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import WhetError
from .rope import rope_reason

Config = Mapping[str, Any]
"""A model's config.json."""

LLAMA_LAYER = (
    "input_layernorm",
    "post_attention_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@dataclass(frozen=True)
class Architecture:
    """How one family's checkpoint becomes a GGUF.

    Args:
        model_types: values of ``model_type`` in config.json.
        name: llama.cpp's architecture, one of ``gguf.MODEL_ARCH_NAMES``, e.g. ``llama``.
        layer_modules: modules whose ``.weight`` every layer must have, below ``model.layers.N.``.
        permute_qk: q and k rows are reordered from rotate-half to interleaved pairs, as llama.cpp's rope
            wants them for this architecture.
        biases: modules of a layer that may carry a ``.bias``; llama.cpp drops any other silently.
        activation: the only ``hidden_act`` llama.cpp computes for this architecture.
        windowed: a ``sliding_window`` in config.json is in force unless ``use_sliding_window`` denies it.
        default_head_dim: where config.json has none; None is hidden size / heads.
        default_norm_epsilon, default_rope_theta: the class's values where config.json is silent.
    """

    model_types: tuple[str, ...]
    name: str
    layer_modules: tuple[str, ...] = LLAMA_LAYER
    permute_qk: bool = False
    biases: tuple[str, ...] = ()
    activation: str = "silu"
    windowed: bool = False
    default_head_dim: int | None = None
    default_norm_epsilon: float = 1e-6
    default_rope_theta: float = 10000.0

    def head_dim(self, config: Config) -> int:
        """Width of one attention head."""
        explicit = config.get("head_dim") or self.default_head_dim
        return int(explicit or config["hidden_size"] // config["num_attention_heads"])

    def kv_heads(self, config: Config) -> int:
        return int(config.get("num_key_value_heads") or config["num_attention_heads"])


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(("llama",), "llama", permute_qk=True, biases=_ATTENTION + _MLP),
    # Mistral computes what Llama does; only its window differs, see context_length in metadata.py.
    Architecture(("mistral",), "llama", permute_qk=True, windowed=True),
    Architecture(("qwen2",), "qwen2", biases=_ATTENTION[:3]),
    Architecture(("qwen3",), "qwen3", layer_modules=LLAMA_LAYER + _QK_NORMS, default_head_dim=128),
)

_BY_MODEL_TYPE = {model_type: one for one in ARCHITECTURES for model_type in one.model_types}


def supported_architecture(model_type: str, config: Config) -> str | None:
    """None when a model of this config can be converted, otherwise the reason why not, as one sentence.

    Args:
        model_type: ``model_type`` of config.json.
        config: the whole config.json.
    """
    architecture = _BY_MODEL_TYPE.get(model_type)
    if architecture is None:
        known = ", ".join(_BY_MODEL_TYPE)
        return f"The GGUF writer does not know model_type {model_type!r} yet (it knows {known})."
    activation = config.get("hidden_act") or config.get("hidden_activation") or architecture.activation
    if activation != architecture.activation:
        return f"llama.cpp computes {architecture.activation} for {model_type}, this model uses {activation}."
    return rope_reason(config)


def find_architecture(config: Config) -> Architecture:
    """The descriptor of a config.json. Raises WhetError ``gguf.unsupported`` with the reason."""
    model_type = str(config.get("model_type", ""))
    reason = supported_architecture(model_type, config)
    if reason is not None:
        raise WhetError(
            "gguf.unsupported",
            reason,
            "Export the adapter or the merged weights instead, or convert the merged folder "
            "with another tool.",
        )
    return _BY_MODEL_TYPE[model_type]
