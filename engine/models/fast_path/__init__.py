"""Training and evaluation on whet's kernels, in place of a model's own forward pass."""

from .apply import apply_fast_path, causal_model, program_of, take_off_fast_path
from .generation import bind_generate, generate
from .packed import PackedTokens, fill_up, pack_padded, pack_rows
from .program import DecoderProgram, Keep
from .report import FastPathReport, slow_parts, slower

__all__ = [
    "DecoderProgram",
    "FastPathReport",
    "Keep",
    "PackedTokens",
    "apply_fast_path",
    "bind_generate",
    "causal_model",
    "fill_up",
    "generate",
    "pack_padded",
    "pack_rows",
    "program_of",
    "slow_parts",
    "slower",
    "take_off_fast_path",
]
