"""Qwen2 (2.5) and Qwen3."""

from __future__ import annotations

from ..descriptor import Architecture
from .tables import ENDS, NORMS, QK_NORMS, attention, gated_mlp

DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

QWEN2 = Architecture(
    model_types=("qwen2",),
    name="qwen2",
    tensors=ENDS + NORMS + attention(bias=True) + gated_mlp(),
    defaults=DEFAULTS,
)

QWEN3 = Architecture(
    model_types=("qwen3",),
    name="qwen3",
    tensors=ENDS + NORMS + QK_NORMS + attention() + gated_mlp(),
    defaults=DEFAULTS | {"head_dim": 128},
)
