"""Checkpoints of random weights of every kind of model that is compared, by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
from cases import SMALL, SMALL_ENCODERS
from seeing import make_seeing

UNENDING = "-unending"
"""Behind a decoder's name: its end token is never drawn, so that each answer has its full length."""
HEARING: dict[str, dict[str, Any]] = {
    "small-whisper": {"d_model": 256, "layers": 4, "heads": 8, "ffn": 1024, "rows": 2048, "seconds": 3},
    "whisper-small": {"d_model": 768, "layers": 12, "heads": 12, "ffn": 3072, "rows": 51865, "seconds": 30},
}
"""``layers`` and ``heads`` of the encoder and of the decoder; ``seconds`` of its window."""
SEEING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small-llava": (
        {
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "vocab_size": 4096,
        },
        {
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "image_size": 112,
        },
    ),
    "llava-1b": (  # Llama 3.2 1B below LLaVA 1.5's vocabulary, CLIP's large encoder
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
        },
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
        },
    ),
}
"""Language model and image encoder."""
TOWER = {"model_type": "clip_vision_model", "patch_size": 14}


def make(model: str, folder: Path) -> None:
    """Write a model; a folder that is there is whole and stays."""
    if folder.is_dir():
        return
    if model.endswith(UNENDING):
        _whole(folder, lambda into: _unending(model.removesuffix(UNENDING), into))
    elif model in HEARING:
        _whole(folder, lambda into: _hearing(into, **HEARING[model]))
    elif model in SEEING:
        text, tower = SEEING[model]
        _whole(folder, lambda into: make_seeing(into, text, TOWER | tower))
    else:
        models.SHAPES.update(SMALL)
        models.ENCODERS.update(SMALL_ENCODERS)
        models.make(model, folder)


def _whole(folder: Path, write: Callable[[Path], None]) -> None:
    """What ``write`` makes has its name when it is done."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    partial.rename(folder)


def _unending(model: str, folder: Path) -> None:
    """A decoder whose first hidden place is the same for all tokens in all layers, and a head that turns it
    against the end token alone: its logit is far below the others, which are as random as before."""
    import torch
    from transformers import AutoModelForCausalLM

    models.SHAPES.update({model: {**(SMALL | models.SHAPES)[model], "tie_word_embeddings": False}})
    models.make(model, folder)
    causal = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        causal.get_input_embeddings().weight[:, 0] = 0.2
        for name, weight in causal.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight[0] = 0
        head = causal.get_output_embeddings().weight
        head[:, 0] = 0
        head[causal.config.eos_token_id] = 0
        head[causal.config.eos_token_id, 0] = -50
    causal.save_pretrained(folder)


def _hearing(folder: Path, d_model: int, layers: int, heads: int, ffn: int, rows: int, seconds: int) -> None:
    """A Whisper with the marks of two languages and a token a byte."""
    import torch
    from support.tiny_whisper import build_tiny_whisper
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    build_tiny_whisper(folder)
    config = WhisperConfig.from_pretrained(
        folder,
        d_model=d_model,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn,
        vocab_size=rows,
        num_mel_bins=80,
        max_source_positions=50 * seconds,
        max_target_positions=448,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    settings: Any = GenerationConfig.from_pretrained(folder)
    settings._from_model_config = False  # else transformers makes it anew while loading
    model.generation_config = settings
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=seconds)
    WhisperProcessor(extractor, WhisperTokenizer.from_pretrained(folder)).save_pretrained(folder)
