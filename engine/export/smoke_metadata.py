"""What stands in a GGUF's header, and the factors of its rotary frequencies. Light (reads with gguf)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .gguf.reading import open_gguf, value_of

TOKENIZER_ARRAYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores")
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")


def read_metadata(gguf: Path) -> dict[str, Any]:
    """Scalar and short string values by key, the names of the tensors under ``"tensors"``, and under
    ``"rope_tensors"`` the values of those that hold factors of rotary frequencies.

    Raises WhetError ``gguf.unreadable`` for a file that is no GGUF, or was cut off.
    """
    import numpy as np

    reader = open_gguf(gguf)
    values: dict[str, Any] = {
        name: value_of(field, gguf)
        for name, field in reader.fields.items()
        if not name.startswith(TOKENIZER_ARRAYS) and name != "tokenizer.ggml.token_type"
    }
    values = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
    factors = {one.name: one.data.tolist() for one in reader.tensors if one.name in ROPE_TENSORS}
    return {**values, "tensors": [tensor.name for tensor in reader.tensors], "rope_tensors": factors}
