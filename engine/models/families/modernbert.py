"""ModernBERT: norms first, rotary positions, GeGLU, fused projections; two of three layers see a window."""

from .descriptor import ENCODING, NO_FAST_ENCODER, EncoderLayout, Family

FAMILY = Family(
    name="modernbert",
    model_types=("modernbert",),
    fast=NO_FAST_ENCODER,
    target_modules=("Wqkv", "Wo", "Wi"),
    encoder=EncoderLayout(
        layers="layers",
        qkv=("attn.Wqkv",),
        output="attn.Wo",
        mlp=("mlp.Wi", "mlp.Wo"),
        positions="rotary",
        token_types=False,
        gated=True,
        pooler=False,
        biases=False,
        pre_norm=True,
        norms=("attn_norm", "mlp_norm"),
        words="embeddings.tok_embeddings",
        embedding_norm="embeddings.norm",
        final_norm="final_norm",
    ),
    capabilities=ENCODING,
)
