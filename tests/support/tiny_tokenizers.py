"""Byte-level BPE tokenizers of a few hundred tokens, and model directories that hold only one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "The model reads rows and learns to answer questions about fine-tuning.",
    "A small rank is enough; the learning rate decides more than anything else.",
    "You are a helpful assistant. What is two and two? It is four, my friend.",
]
SPECIALS = (
    *("<s>", "</s>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<start_of_turn>", "<end_of_turn>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
)


def byte_level(
    specials: tuple[str, ...] = SPECIALS, prefix: str | None = None, vocabulary: int = 400
) -> Tokenizer:
    """A tokenizer that can spell anything; ``prefix`` is what its post-processor puts before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if prefix is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{prefix} $A", special_tokens=[(prefix, tokenizer.token_to_id(prefix))]
        )
    return tokenizer


def metaspace(specials: tuple[str, ...] = SPECIALS) -> Tokenizer:
    """SentencePiece's way with spaces: a word's token carries the space before it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", *specials], show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def model_dir(path: Path, tokenizer: Tokenizer | None = None, **config: Any) -> Path:
    """A directory with tokenizer.json and tokenizer_config.json; no weights."""
    path.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level()).save(str(path / "tokenizer.json"))
    tokens = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    (path / "tokenizer_config.json").write_text(json.dumps({**tokens, **config}))
    return path
