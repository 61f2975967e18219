"""Checkpoints of random weights in the shapes that are timed, and the rows they are trained on."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {  # Llama 3.1
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "1b": {  # Llama 3.2
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "0.6b": {  # Qwen 3
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    "tiny": {  # runs on a CPU in seconds
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
ENCODERS: dict[str, dict[str, Any]] = {
    "minilm": {
        "model_type": "bert",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
    },
    "bge-m3": {
        "model_type": "xlm-roberta",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "vocab_size": 250002,
        "max_position_embeddings": 8194,
        "type_vocab_size": 1,
    },
    "tiny-encoder": {
        "model_type": "bert",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 2048,
        "max_position_embeddings": 512,
    },
}
"""Without dropout, so that losses can be compared."""
WORDS = 2000
SPECIALS = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"
)


def make(model: str, folder: Path) -> None:
    """Write weights in bf16 and a byte tokenizer; a folder that is there is whole and stays."""
    if folder.is_dir():
        return
    if model in ENCODERS:
        _make_encoder(model, folder)
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**SHAPES[model], bos_token_id=0, eos_token_id=1, pad_token_id=2)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        causal = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    causal.save_pretrained(partial)
    _write_tokenizer(partial)
    partial.rename(folder)


def _write_tokenizer(folder: Path) -> None:
    """A token a byte; rows are token ids already, so it is only loaded, not used."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    texts = [*SPECIALS.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({text: index for index, text in enumerate(texts)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS.values()))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIALS, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _make_encoder(model: str, folder: Path) -> None:
    """A random encoder in fp32 with mean pooling, as sentence-transformers saves it, and a token a word."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoConfig, AutoModel

    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = AutoConfig.for_model(**ENCODERS[model], **none, pad_token_id=0)
    torch.manual_seed(0)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    plain = partial / "plain"
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        encoder = AutoModel.from_config(config)
    encoder.save_pretrained(plain)
    _write_word_tokenizer(plain)
    modules = [Transformer(str(plain), max_seq_length=512), Pooling(config.hidden_size, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(partial / "whole"))
    (partial / "whole").rename(folder)
    shutil.rmtree(partial)


def _write_word_tokenizer(folder: Path) -> None:
    """[CLS] words [SEP], every word of :func:`text_pairs` a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    vocabulary = {text: index for index, text in enumerate([*roles.values(), *map(_word, range(WORDS))])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=roles["unk"], max_input_chars_per_word=100))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(text, vocabulary[text]) for text in (roles["cls"], roles["sep"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{role}_token": text for role, text in roles.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names).save_pretrained(folder)


def _word(number: int) -> str:
    return f"w{number}"


def text_pairs(count: int, seed: int = 3) -> dict[str, list[str]]:
    """Anchors and positives of random words, of log-normal lengths with medians of 14 and 9."""
    import numpy as np

    random = np.random.default_rng(seed)

    def text(median: int) -> str:
        length = int(np.clip(random.lognormal(np.log(median), 0.5), 3, 120))
        return " ".join(map(_word, random.integers(0, WORDS, length)))

    return {"anchor": [text(14) for _ in range(count)], "positive": [text(9) for _ in range(count)]}


def token_rows(model: str, count: int, length: int, lengths: str, seed: int = 7) -> list[list[int]]:
    """Rows of uniformly random tokens.

    Args:
        model: whose vocabulary.
        count: of rows.
        length: tokens of a row, or of the longest.
        lengths: ``fixed``, or ``chat`` for log-normal ones with a median of a fifth of ``length``.
        seed: the same rows for every stack.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    sizes = np.full(count, length)
    if lengths == "chat":
        sizes = np.clip(random.lognormal(np.log(length / 5), 0.8, count), 16, length).astype(int)
    vocabulary = SHAPES[model]["vocab_size"]
    return [random.integers(len(SPECIALS), vocabulary, int(size)).tolist() for size in sizes]


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
