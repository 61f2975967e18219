"""MPNet (all-mpnet-base-v2): BERT's layers with a learned bias on the distance of two positions."""

from .descriptor import ENCODING, NO_FAST_ENCODER, EncoderLayout, Family

FAMILY = Family(
    name="mpnet",
    model_types=("mpnet",),
    fast=NO_FAST_ENCODER,
    target_modules=("q", "k", "v", "o", "dense"),
    encoder=EncoderLayout(
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        output="attention.attn.o",
        positions="relative",
        token_types=False,
        slow="attention adds a learned bias on the distance of two tokens, which no kernel here computes",
    ),
    defaults={"relative_attention_num_buckets": 32},
    capabilities=ENCODING,
)
