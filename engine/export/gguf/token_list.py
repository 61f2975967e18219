"""The tokens of a tokenizer.json as llama.cpp lists them: text, type, score or merges, by kind. Light."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import WhetError
from .pretokenizer import is_byte_level
from .sentencepiece_model import Piece
from .steps import names, parts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The values of llama.cpp's token types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

BELOW_ALL = 1e4
"""A token that no text becomes scores this much less than the least likely one."""


@dataclass
class TokenList:
    """Each id's text and type, and what orders the merging."""

    kind: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None = None
    scores: list[float] | None = None
    normalisation: dict[str, Any] = field(default_factory=dict)
    """Fields of ``Vocabulary`` that say how text is prepared."""


def tokenizer_kind(spec: dict[str, Any]) -> str:
    """``gpt2``, ``llama``, ``bert`` or ``t5``, from a tokenizer.json.

    Raises:
        WhetError: ``gguf.unsupported`` for others.
    """
    model = spec["model"]
    match model.get("type", "BPE"):
        case "BPE" if is_byte_level(spec["pre_tokenizer"]):
            return "gpt2"
        case "BPE" if model.get("byte_fallback"):
            return "llama"
        case "WordPiece" if _wordpiece_normalizer(spec) is not None:
            return "bert"
        case "Unigram" if not model.get("byte_fallback"):
            return "t5"
    raise WhetError(
        "gguf.unsupported",
        "llama.cpp knows byte-level BPE, SentencePiece's BPE with byte fallback and Unigram without it, and "
        f"BERT's WordPiece; this tokenizer is {model.get('type')!r} (byte_fallback="
        f"{model.get('byte_fallback')}, normalizer {names(spec.get('normalizer'))}).",
        "Export the adapter or the merged weights instead.",
    )


def read_tokens(
    spec: dict[str, Any], tokenizer: Tokenizer, rows: int, pieces: Sequence[Piece] = ()
) -> TokenList:
    """The list for an embedding of ``rows`` rows.

    Args:
        spec: the tokenizer.json.
        tokenizer: loaded from it.
        rows: of the embedding.
        pieces: of the SentencePiece model beside it, if there is one; their scores are taken where they are
            the tokens of tokenizer.json, otherwise the order of its merges says the same.

    Raises:
        WhetError: ``gguf.unsupported``, ``gguf.vocab_mismatch``.
    """
    kind, model = tokenizer_kind(spec), spec["model"]
    listed = TokenList(kind, *_texts_and_types(tokenizer, kind, model, rows))
    match kind:
        case "gpt2":
            listed.merges = merges_of(model)
        case "llama":
            scores = _scores_of_model(listed.tokens, pieces)
            listed.scores = scores or _scores_of_merges(listed.tokens, merges_of(model))
        case "bert":
            _as_phantom_spaces(listed, model)
            listed.normalisation |= _wordpiece_normalisation(spec)
        case "t5":
            listed.scores = _scores_of_pieces(listed, model)
            listed.normalisation |= _unigram_normalisation(spec, tokenizer)
    _check_distinct(listed)
    return listed


def _texts_and_types(
    tokenizer: Tokenizer, kind: str, model: dict[str, Any], rows: int
) -> tuple[list[str], list[int]]:
    """Text and type of each id below ``rows``."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    beyond = {text: id for text, id in vocabulary.items() if id >= rows}
    if beyond:
        text, id = max(beyond.items(), key=lambda item: item[1])
        raise WhetError(
            "gguf.vocab_mismatch",
            f"The tokenizer has {len(beyond)} tokens without an embedding row: {text!r} is id {id}, "
            f"the model has {rows} rows.",
            "Resize the model's embeddings to the tokenizer, or use the tokenizer the model was "
            "trained with.",
        )
    tokens, types = [_filler(id, vocabulary) for id in range(rows)], [UNUSED] * rows
    added = tokenizer.get_added_tokens_decoder()
    for text, id in [*vocabulary.items(), *((token.content, id) for id, token in added.items())]:
        if types[id] != UNUSED and tokens[id] != text:
            raise WhetError(
                "gguf.unsupported",
                f"Tokens {tokens[id]!r} and {text!r} share the id {id}; in llama.cpp none can.",
                "Save the tokenizer anew with its added tokens behind the others.",
            )
        tokens[id], types[id] = text, BYTE if kind == "llama" and _is_byte(text) else NORMAL
    for id, token in added.items():
        types[id] = CONTROL if token.special else USER_DEFINED
    unknown = vocabulary.get(model.get("unk_token") or "")
    if kind == "t5":
        unknown = model.get("unk_id")
    if kind != "gpt2" and unknown is not None:
        types[unknown] = UNKNOWN
    return tokens, types


def _filler(id: int, vocabulary: dict[str, int]) -> str:
    """A name for a row without a token that no token has."""
    name = f"[PAD{id}]"
    return name if name not in vocabulary else f"[UNUSED_ROW{id}]"


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _check_distinct(listed: TokenList) -> None:
    """llama.cpp ends itself on two tokens of the same text."""
    seen: dict[str, int] = {}
    for id, text in enumerate(listed.tokens):
        if text in seen:
            raise WhetError(
                "gguf.unsupported",
                f"Tokens {seen[text]} and {id} would both be {text!r} in llama.cpp's vocabulary.",
                "Rename the added token, or export the merged weights instead.",
            )
        seen[text] = id


# Byte-level and SentencePiece-style BPE.


def merges_of(model: dict[str, Any]) -> list[str]:
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def _scores_of_model(tokens: list[str], pieces: Sequence[Piece]) -> list[float] | None:
    """SentencePiece's own scores; None unless its pieces are the first tokens, one by one."""
    if not pieces or [piece.text for piece in pieces] != tokens[: len(pieces)]:
        return None
    lowest = min(piece.score for piece in pieces) - BELOW_ALL
    return [*(piece.score for piece in pieces), *[lowest] * (len(tokens) - len(pieces))]


def _scores_of_merges(tokens: list[str], merges: list[str]) -> list[float]:
    """SentencePiece merges the pair of the highest score first; a merge list says the same by its order."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    # What no merge makes (bytes, characters, special tokens) needs no score; the last place does no harm.
    return [-float(ranks.get(token, len(merges))) for token in tokens]


# WordPiece.


def _wordpiece_normalizer(spec: dict[str, Any]) -> dict[str, Any] | None:
    """The steps llama.cpp takes before WordPiece are BertNormalizer's; None when others are wanted."""
    steps = list(parts(spec.get("normalizer")))
    return steps[0] if len(steps) == 1 and steps[0]["type"] == "BertNormalizer" else None


def _wordpiece_normalisation(spec: dict[str, Any]) -> dict[str, bool]:
    step = _wordpiece_normalizer(spec)
    assert step is not None
    lowercase, strip = bool(step["lowercase"]), step.get("strip_accents")
    return {"lowercase": lowercase, "strip_accents": lowercase if strip is None else bool(strip)}


def _as_phantom_spaces(listed: TokenList, model: dict[str, Any]) -> None:
    """Beginnings of words get llama.cpp's "▁", continuations lose WordPiece's "##"."""
    prefix = model["continuing_subword_prefix"]
    listed.tokens = [
        _phantom(text, prefix) if type == NORMAL else text
        for text, type in zip(listed.tokens, listed.types, strict=True)
    ]


def _phantom(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        return "▁" + text
    rest = text.removeprefix(prefix)
    # A continuation that begins with "▁" would look like a word's beginning; as it stands it is never met.
    return text if rest.startswith("▁") else rest


# Unigram.


def _scores_of_pieces(listed: TokenList, model: dict[str, Any]) -> list[float]:
    scores = [score for _, score in model["vocab"]]
    lowest = min(scores) - BELOW_ALL
    return [*scores, *[lowest] * (len(listed.tokens) - len(scores))]


def _unigram_normalisation(spec: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The charsmap, and what becomes of runs of spaces: found by encoding, as several steps may do it."""
    charsmaps = [
        step["precompiled_charsmap"]
        for step in parts(spec.get("normalizer"))
        if step["type"] == "Precompiled" and step["precompiled_charsmap"]
    ]
    ids = {text: tokenizer.encode(text, add_special_tokens=False).ids for text in ("a", "a a", " a  a")}
    return {
        "charsmap": b64decode(charsmaps[0]) if charsmaps else None,
        "remove_extra_whitespaces": ids["a a"] == ids[" a  a"],
    }
