"""A config.json as its model class reads it: silent keys filled in, derived sizes worked out. Light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import WhetError
from .rope import Rope, read_rope


@dataclass(frozen=True)
class ModelConfig:
    """What a descriptor's functions are given.

    Args:
        values: config.json over the defaults of the model class; a multimodal model's text section is laid
            over the rest.
        folder: where the model lies, for what is said outside of config.json; None where only the
            config.json is known.
    """

    values: Mapping[str, Any]
    folder: Path | None = None

    @classmethod
    def read(
        cls, config: Mapping[str, Any], defaults: Mapping[str, Any], folder: Path | None = None
    ) -> ModelConfig:
        return cls({**defaults, **config, **(config.get("text_config") or {})}, folder)

    def __getitem__(self, key: str) -> Any:
        self.require(key)
        return self.values[key]

    def require(self, *keys: str) -> None:
        """Raise WhetError ``gguf.unsupported`` where neither config.json nor its class has a value."""
        missing = [key for key in keys if self.get(key) is None]
        if missing:
            raise WhetError(
                "gguf.unsupported",
                f"config.json does not say {', '.join(missing)}, which a GGUF must.",
                "Save the model again with transformers, which writes all its settings.",
            )

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    @property
    def layers(self) -> int:
        return int(self["num_hidden_layers"])

    @property
    def heads(self) -> int:
        return int(self["num_attention_heads"])

    @property
    def kv_heads(self) -> int:
        return int(self.get("num_key_value_heads") or self.heads)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return int(self.get("head_dim") or self["hidden_size"] // self.heads)

    @property
    def experts(self) -> int:
        """Experts of a layer; 0 in a model without."""
        return int(self.get("num_local_experts") or self.get("num_experts") or 0)

    @property
    def tied(self) -> bool | None:
        """Whether the head shares the embedding; None where config.json does not say."""
        said = self.get("tie_word_embeddings")
        return None if said is None else bool(said)

    @property
    def activation(self) -> str | None:
        return self.get("hidden_activation") or self.get("hidden_act")

    @property
    def positions(self) -> int:
        return int(self.get("max_position_embeddings") or 2048)

    @property
    def rope(self) -> Rope:
        """Of the layers that see the whole text, where there are two kinds."""
        return read_rope(self.values)

    @property
    def rotary_dim(self) -> int:
        """How many numbers of a head are rotated."""
        return int(self.head_dim * self.rope.partial)

    @property
    def stated_window(self) -> int | None:
        """``sliding_window`` unless it is switched off; of families that give it to every layer."""
        window = self.get("sliding_window") if self.get("use_sliding_window", True) else None
        return int(window) if window else None

    @property
    def window(self) -> int | None:
        """Positions a token of a windowed layer sees, itself included; None where no layer is windowed."""
        kinds = self.get("layer_types")
        if kinds is not None:
            return self.stated_window if "sliding_attention" in kinds else None
        first = int(self.get("max_window_layers") or 0)
        return self.stated_window if first < self.layers else None
