"""A tiny random CSM: a backbone and a depth decoder of two layers, four codebooks, a tiny Mimi inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.tiny_models import write_tokenizer

BOOKS, SIZE, RATE = 4, 20, 2400


def mimi_config() -> Any:
    """Two downsampling steps of ten, so 2,400 samples are 24 frames; codebooks of 16 codes."""
    from transformers import MimiConfig

    return MimiConfig(
        sampling_rate=RATE,
        hidden_size=16,
        num_filters=4,
        num_residual_layers=1,
        upsampling_ratios=[5, 5, 2],
        codebook_size=16,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=BOOKS,
        num_semantic_quantizers=1,
        num_hidden_layers=1,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        upsample_groups=16,
        sliding_window=16,
    )


def spread_codebooks(codec: Any) -> None:
    """Codebooks of zeros would hear the same in every sound."""
    import torch

    for name, table in codec.named_buffers():
        if name.endswith("embed_sum"):
            table.copy_(torch.randn(table.shape))


def build_tiny_csm(path: Path, seed: int = 0) -> Path:
    """Write model and tokenizer; returns ``path``."""
    import torch
    from transformers import CsmConfig, CsmDepthDecoderConfig, CsmForConditionalGeneration

    path.mkdir(parents=True)
    ids = write_tokenizer(path)
    shape: dict[str, Any] = {
        "num_codebooks": BOOKS,
        "vocab_size": SIZE,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = CsmConfig(
        **shape,
        hidden_size=48,
        text_vocab_size=ids["rows"],
        codebook_pad_token_id=SIZE - 1,
        codebook_eos_token_id=0,
        bos_token_id=ids["<|begin|>"],
        pad_token_id=ids["<|pad|>"],
        audio_token_id=ids["<|user|>"],
        audio_eos_token_id=ids["<|assistant|>"],
        max_position_embeddings=256,
        depth_decoder_config=CsmDepthDecoderConfig(**shape, hidden_size=32, backbone_hidden_size=48),
        codec_config=mimi_config(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CsmForConditionalGeneration(config)
        with torch.no_grad():  # an adapter moves hidden states: of 0.02 no logit could be far from another
            model.lm_head.weight.mul_(20)
            model.depth_decoder.codebooks_head.weight.mul_(20)
            model.embed_text_tokens.weight.mul_(20)
            spread_codebooks(model.codec_model)
    model.save_pretrained(path)
    return path
