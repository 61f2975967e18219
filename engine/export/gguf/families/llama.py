"""Llama and Mistral: what llama.cpp calls ``llama``."""

from __future__ import annotations

from ..descriptor import Architecture
from ..transforms import interleave_k, interleave_q
from .tables import ENDS, NORMS, attention, gated_mlp

ROPES = ("default", "linear", "llama3", "yarn", "longrope")

LLAMA = Architecture(
    model_types=("llama",),
    name="llama",
    tensors=ENDS
    + NORMS
    + attention(interleave_q, interleave_k, bias=True, out_bias=True)
    + gated_mlp(bias=True),
    defaults={"rms_norm_eps": 1e-6},
    ropes=ROPES,
)

# Mistral computes what Llama does; only its window differs.
MISTRAL = Architecture(
    model_types=("mistral",),
    name="llama",
    tensors=ENDS + NORMS + attention(interleave_q, interleave_k) + gated_mlp(),
    defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096},
    ropes=ROPES,
)
