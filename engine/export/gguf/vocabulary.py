"""A tokenizer.json as llama.cpp's vocabulary: tokens, types, merges or scores, special ids. Light."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.chat_templates.renderer import Renderer, strip_generation_tags
from ...data.tokenizer_files import TokenizerFiles
from ...errors import WhetError
from .pretokenizer import is_byte_level

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from tokenizers import Tokenizer

# The values of llama.cpp's token types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Vocabulary:
    """Everything under ``tokenizer.*`` but the pre-tokenizer's name."""

    model: str
    """``gpt2`` for byte-level BPE, ``llama`` for SentencePiece-style BPE with byte fallback."""
    tokens: list[str]
    types: list[int]
    merges: list[str] | None = None
    scores: list[float] | None = None
    ids: dict[str, int] = field(default_factory=dict)
    """Special role (bos, eos, eot, eom, pad, unk) -> id."""
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool | None = None
    chat_template: str | None = None

    def write(self, writer: GGUFWriter, pre: str) -> None:
        """Add the keys; ``pre`` is the pre-tokenizer's name."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        for role, id in self.ids.items():
            writer.add_uint32(f"tokenizer.ggml.{ROLE_KEYS[role]}_token_id", id)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


ROLE_KEYS = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "pad": "padding", "unk": "unknown"}


def read_vocabulary(files: TokenizerFiles, rows: int) -> Vocabulary:
    """Read a model folder's tokenizer.

    Args:
        files: the folder's tokenizer files.
        rows: rows of the embedding; ids without a token become unused padding.

    Raises:
        WhetError: ``gguf.unsupported`` for other kinds of tokenizer, ``gguf.vocab_mismatch`` when a token's
            id has no embedding row.
    """
    spec = json.loads(files.tokenizer_json.read_text(encoding="utf-8"))
    kind = tokenizer_kind(spec)
    tokenizer = files.load()
    tokens, types = _tokens(tokenizer, kind, spec["model"], rows)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    add_bos, add_eos = _added_around_text(tokenizer, files)
    return Vocabulary(
        model=kind,
        tokens=tokens,
        types=types,
        merges=merges if kind == "gpt2" else None,
        scores=_scores(tokens, merges) if kind == "llama" else None,
        ids=_special_ids(tokenizer, files),
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=_adds_space(spec) if kind == "llama" else None,
        chat_template=strip_generation_tags(files.chat_template) if files.chat_template else None,
    )


def tokenizer_kind(spec: dict[str, Any]) -> str:
    """``gpt2`` or ``llama``, from a tokenizer.json. Raises WhetError ``gguf.unsupported`` for others."""
    model = spec["model"]
    if model.get("type", "BPE") == "BPE":
        if is_byte_level(spec["pre_tokenizer"]):
            return "gpt2"
        if model.get("byte_fallback"):
            return "llama"
    raise WhetError(
        "gguf.unsupported",
        f"The GGUF writer knows byte-level BPE and SentencePiece-style BPE tokenizers, "
        f"not {model.get('type')!r} (byte_fallback={model.get('byte_fallback')}).",
        "Export the adapter or the merged weights instead.",
    )


def unsupported_tokenizer(folder: Path) -> str | None:
    """None when the folder's tokenizer can be written, otherwise the reason: for the plan."""
    try:
        tokenizer_kind(json.loads(TokenizerFiles.read(folder).tokenizer_json.read_text(encoding="utf-8")))
    except WhetError as error:
        return error.message
    return None


def _tokens(tokenizer: Tokenizer, kind: str, model: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Text and type of each id below ``rows``."""
    tokens, types = [f"[PAD{id}]" for id in range(rows)], [UNUSED] * rows
    added = tokenizer.get_added_tokens_decoder()
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
    for text, id in vocabulary.items():
        tokens[id], types[id] = text, NORMAL
        if kind == "llama" and _is_byte(text):
            types[id] = BYTE
    for id, token in added.items():
        tokens[id], types[id] = token.content, CONTROL if token.special else USER_DEFINED
    unknown = model.get("unk_token")
    if kind == "llama" and unknown in vocabulary:
        types[vocabulary[unknown]] = UNKNOWN
    return tokens, types


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """SentencePiece merges the pair of the highest score first; a merge list says the same by its order."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    # What no merge makes (bytes, characters, special tokens) needs no score; the last place does no harm.
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _adds_space(spec: dict[str, Any]) -> bool:
    """Whether a space is put in front of the text."""
    normalizer, pre_tokenizer = spec.get("normalizer") or {}, spec.get("pre_tokenizer") or {}
    parts = [
        normalizer,
        *normalizer.get("normalizers", ()),
        pre_tokenizer,
        *pre_tokenizer.get("pretokenizers", ()),
    ]
    return any(
        part.get("type") == "Prepend"
        or (part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in parts
    )


def _added_around_text(tokenizer: Tokenizer, files: TokenizerFiles) -> tuple[bool, bool]:
    """Whether BOS and EOS are put around plain text: found by encoding, unless the configuration says it."""
    bare = tokenizer.encode("a", add_special_tokens=False).tokens
    full = tokenizer.encode("a", add_special_tokens=True).tokens
    bos = full[0] == files.bos_token != bare[0]
    eos = full[-1] == files.eos_token != bare[-1]
    return (bos if files.add_bos_token is None else files.add_bos_token), eos


def _special_ids(tokenizer: Tokenizer, files: TokenizerFiles) -> dict[str, int]:
    """Ids by role. EOT ends a turn of the chat template, EOM is a further id that generation stops at."""
    roles = {"bos": files.bos_token, "eos": files.eos_token, "pad": files.pad_token, "unk": files.unk_token}
    found = {role: tokenizer.token_to_id(text) for role, text in roles.items() if text is not None}
    ids = {role: id for role, id in found.items() if id is not None}
    end = _end_of_turn(tokenizer, files)
    stops = [id for id in (end, *files.generation_eos_ids) if id is not None and id != ids.get("eos")]
    return ids | dict(zip(("eot", "eom"), dict.fromkeys(stops), strict=False))


def _end_of_turn(tokenizer: Tokenizer, files: TokenizerFiles) -> int | None:
    if files.chat_template is None:
        return None
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    renderer = Renderer(files.chat_template, files.bos_token, files.eos_token, added)
    try:
        end = renderer.end_token
    except WhetError as error:
        if error.code != "template.render":
            raise
        return None  # The template wants another conversation than a question and an answer.
    return tokenizer.token_to_id(end) if end is not None else None
