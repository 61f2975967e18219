"""RoBERTa and XLM-RoBERTa (BGE-M3, multilingual E5): BERT's layers; positions count from the padding id."""

from .descriptor import ENCODING, NO_FAST_ENCODER, EncoderLayout, Family

FAMILY = Family(
    name="xlm_roberta",
    model_types=("xlm-roberta", "roberta"),
    fast=NO_FAST_ENCODER,
    target_modules=("query", "key", "value", "dense"),
    encoder=EncoderLayout(after_padding=True),
    defaults={"type_vocab_size": 2},
    capabilities=ENCODING,
)
