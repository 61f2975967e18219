"""BERT and the encoders of its shape: MiniLM, BGE, E5, GTE (base class ``bert``)."""

from .descriptor import ENCODING, NO_FAST_ENCODER, EncoderLayout, Family

FAMILY = Family(
    name="bert",
    model_types=("bert",),
    fast=NO_FAST_ENCODER,
    target_modules=("query", "key", "value", "dense"),
    encoder=EncoderLayout(),
    defaults={"type_vocab_size": 2},
    capabilities=ENCODING,
)
