"""What a config.json states, each value that is read of its kind: a foreign file is refused by the name of a
key, so that an error further on is one of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import WhetError

SIZES = (
    "hidden_size", "n_embd", "d_model", "num_attention_heads", "n_head", "encoder_attention_heads",
    "num_hidden_layers", "n_layer", "encoder_layers", "decoder_layers", "num_key_value_heads", "head_dim",
    "intermediate_size", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "vocab_size", "text_vocab_size",
    "num_codebooks", "max_position_embeddings", "type_vocab_size", "relative_attention_num_buckets",
    "num_mel_bins", "max_source_positions", "max_target_positions", "qk_nope_head_dim", "qk_rope_head_dim",
    "v_head_dim", "q_lora_rank", "kv_lora_rank", "num_local_experts", "n_routed_experts", "num_experts",
    "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts", "first_k_dense_replace",
    "decoder_sparse_step",
)  # fmt: skip
"""Keys of whole numbers; null says nothing of them."""


class Stated(Mapping[str, Any]):
    """The values of a configuration. Those that nobody asks for may be anything.

    Reading one raises WhetError ``model.config`` where it is of another kind, or is not there.

    Args:
        values: of the file, over what stands in for what it leaves out.
        file: whose they are.
    """

    def __init__(self, values: Mapping[str, Any], file: Path) -> None:
        self.file = file
        self._values = {key: value for key, value in values.items() if value is not None or key not in SIZES}

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or ``default`` where none is stated."""
        if key not in self:
            return default
        return self[key]

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise self._refusal(f"states no {key} (model_type={self.get('model_type')!r})")
        value = self._values[key]
        right, kind = (_is_whole, "a whole number") if key in SIZES else KINDS.get(key, ANYTHING)
        if value is not None and not right(value):
            raise self._refusal(f"states {key}={str(value)[:60]}, which is not {kind}")
        return int(value) if key in SIZES else value

    def _refusal(self, what: str) -> WhetError:
        hint = "Compare it with that of a model of the same kind, or download it again."
        return WhetError("model.config", f"{self.file} {what}.", hint)


def _is_whole(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def _list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(one, kind) for one in value)


Kind = tuple[Callable[[Any], bool], str]
ANYTHING: Kind = (lambda value: True, "anything")
KINDS: dict[str, Kind] = {
    "model_type": (lambda value: isinstance(value, str), "a text"),
    "architectures": (_list_of(str), "a list of texts"),
    "mlp_only_layers": (_list_of(int), "a list of whole numbers"),
    "quantization_config": (lambda value: isinstance(value, dict), "a mapping"),
}
