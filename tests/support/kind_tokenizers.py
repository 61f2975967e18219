"""Tiny tokenizers of each kind that models use, encoders' with their frames, trained on committed text."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from whet.engine.data.tokenizer_files import TokenizerFiles
from whet.engine.export.gguf.sentencepiece_model import SentencePieceModel
from whet.engine.export.probe_corpus import probe_texts

from .tiny_models import TEXT

BERT_SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
MPNET_SPECIALS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
BYTE_FALLBACK: dict[str, Any] = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}
XLMR_SPECIALS = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}


def save(folder: Path, tokenizer: Tokenizer, **settings: Any) -> TokenizerFiles:
    """Write the tokenizer and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return TokenizerFiles.read(folder)


def lines() -> list[str]:
    """Texts to train on: a third of the probe corpus too, so that some of its odd characters are tokens."""
    plain = TEXT.read_text(encoding="utf-8").splitlines()
    return [*plain, *(line for text in probe_texts()[::3] for line in text.splitlines())]


def wordpiece(
    lowercase: bool = True, size: int = 4000, specials: dict[str, str] = BERT_SPECIALS, **settings: Any
) -> Tokenizer:
    """BERT's: normalizer, splitting on spaces and punctuation, [CLS] text [SEP]; MPNet's by its specials."""
    unknown, begin, end = (specials[role] for role in ("unk", "cls", "sep"))
    normalizer = normalizers.BertNormalizer(lowercase=lowercase, **settings)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word for line in lines() for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(line))
    )
    texts = dict.fromkeys([*specials.values(), *_word_pieces(words)])
    vocabulary = {text: id for id, text in enumerate(list(texts)[:size])}
    model = models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in specials.values()])
    ends = ((end, vocabulary[end]), (begin, vocabulary[begin]))
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


def _word_pieces(words: Counter[str]) -> list[str]:
    """Usual letters, at the beginning of words and within, then usual pieces of words.

    Not the library's trainer: it gives other pieces in every process.
    """
    letters: Counter[str] = Counter()
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        for at in range(len(word)):
            mark = "##" if at else ""
            letters[mark + word[at]] += count
            for length in range(2, min(8, len(word) - at) + 1):
                pieces[mark + word[at : at + length]] += count

    def usual(found: Counter[str], most: int) -> list[str]:
        return sorted(found, key=lambda piece: (-found[piece], piece))[:most]

    return [*usual(letters, 2000), *usual(pieces, 4000)]


def sentencepiece_model(kind: str, size: int = 3500, **settings: Any) -> SentencePieceModel:
    """A SentencePiece model trained by the real library, with its real rules of normalisation (nmt_nfkc)."""
    return SentencePieceModel.parse(sentencepiece_bytes(kind, size, **settings))


@functools.cache
def sentencepiece_bytes(kind: str, size: int = 3500, **settings: Any) -> bytes:
    """The ``tokenizer.model`` of ``sentencepiece_model``."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines()),
        model_writer=model,
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
        num_threads=1,
        **settings,
    )
    return model.getvalue()


def unigram(frame: str = "xlm-r") -> Tokenizer:
    """XLM-R's or T5's, from a real SentencePiece model: same normalisation, scores and layout of ids."""
    model = sentencepiece_model("unigram")
    pieces = [(piece.text, piece.score) for piece in model.pieces]
    if frame == "xlm-r":
        special = list(XLMR_SPECIALS.values())
        vocabulary = [*((token, 0.0) for token in special[:4]), *pieces[3:], (special[4], 0.0)]
    else:
        special = ["<pad>", "</s>", "<unk>"]
        vocabulary = [*((token, 0.0) for token in special), *pieces[3:], ("<extra_id_0>", 0.0)]
        special.append("<extra_id_0>")
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=special.index("<unk>"), byte_fallback=False))
    tokenizer.normalizer = normalizers.Precompiled(model.charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, lstrip=t == "<mask>") for t in special]
    )
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>") if token in special]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if frame == "xlm-r" else "$A </s>", special_tokens=ends
    )
    return tokenizer


def sentencepiece_bpe(spaces: str = "every") -> Tokenizer:
    """A real SentencePiece BPE model as tokenizer.json has it; ``spaces`` as in space_prefix.py."""
    from transformers.convert_slow_tokenizer import generate_merges

    pieces = sentencepiece_model("bpe", **BYTE_FALLBACK).pieces
    vocabulary = {piece.text: id for id, piece in enumerate(pieces)}
    merges = generate_merges(vocabulary, {piece.text: piece.score for piece in pieces})
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    underscores = normalizers.Replace(" ", "▁")
    if spaces == "every":  # Llama 2
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), underscores])
    elif spaces == "never":  # Gemma
        tokenizer.normalizer = underscores
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:  # Llama 2 and Mistral as transformers 5 has them
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces, split=False)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    return tokenizer


def charsmap(tokenizer: Tokenizer) -> bytes:
    """The compiled rules in a tokenizer's Precompiled normalizer."""
    state = json.loads(tokenizer.normalizer.__getstate__())
    return base64.b64decode(state["precompiled_charsmap"])
