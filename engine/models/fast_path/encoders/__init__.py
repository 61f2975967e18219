"""Bidirectional encoders on packed rows, as the decoders of the package around."""

from .apply import (
    apply_fast_embedder,
    apply_fast_encoder,
    base_encoder,
    embedder_program_of,
    encoder_program_of,
)
from .packing import pack_documents
from .program import EncoderProgram

__all__ = [
    "EncoderProgram",
    "apply_fast_embedder",
    "apply_fast_encoder",
    "base_encoder",
    "embedder_program_of",
    "encoder_program_of",
    "pack_documents",
]
