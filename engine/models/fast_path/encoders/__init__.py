"""Bidirectional encoders on packed rows, as the decoders of the package around."""

from .apply import (
    apply_fast_embedder,
    apply_fast_encoder,
    base_encoder,
    embedder_program_of,
    encoder_program_of,
)
from .heads import HeadTexts, Reads, head_reads
from .packing import pack_documents
from .program import EncoderProgram

__all__ = [
    "EncoderProgram",
    "HeadTexts",
    "Reads",
    "apply_fast_embedder",
    "apply_fast_encoder",
    "base_encoder",
    "embedder_program_of",
    "encoder_program_of",
    "head_reads",
    "pack_documents",
]
