"""A tokenizer.json as llama.cpp's vocabulary: everything under ``tokenizer.*`` of a GGUF. Light."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...data.chat_templates.renderer import strip_generation_tags
from ...data.tokenizer_files import TokenizerFiles
from ...errors import WhetError
from .sentencepiece_model import Piece, SentencePieceModel
from .space_prefix import space_prefix
from .special_roles import ROLE_KEYS, added_around_text, special_ids
from .stripping import name_mark
from .token_list import read_tokens, tokenizer_kind

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """Everything under ``tokenizer.*`` but the pre-tokenizer's name."""

    model: str
    """``gpt2`` for byte-level BPE, ``llama`` for SentencePiece-style BPE with byte fallback, ``bert`` for
    WordPiece, ``t5`` for Unigram."""
    tokens: list[str]
    types: list[int]
    merges: list[str] | None = None
    scores: list[float] | None = None
    ids: dict[str, int] = field(default_factory=dict)
    """Special role (see ROLE_KEYS) -> id."""
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool | None = None
    remove_extra_whitespaces: bool | None = None
    charsmap: bytes | None = None
    """SentencePiece's compiled normalisation rules."""
    lowercase: bool | None = None
    strip_accents: bool | None = None
    chat_template: str | None = None
    name_mark: str = ""
    """What ``general.name`` must hold for llama.cpp to treat the added tokens as the tokenizer does."""

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
        if self.charsmap is not None:
            writer.add_precompiled_charsmap(self.charsmap)
        for key, value in {
            "ggml.add_space_prefix": self.add_space_prefix,
            "ggml.remove_extra_whitespaces": self.remove_extra_whitespaces,
            "ggml.normalizer.lowercase": self.lowercase,
            "ggml.normalizer.strip_accents": self.strip_accents,
        }.items():
            if value is not None:
                writer.add_bool(f"tokenizer.{key}", value)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(files: TokenizerFiles, rows: int, tokenizer: Tokenizer | None = None) -> Vocabulary:
    """Read a model folder's tokenizer.

    Args:
        files: the folder's tokenizer files.
        rows: rows of the embedding; ids without a token become unused padding.
        tokenizer: loaded from ``files`` already; loading takes a second for large vocabularies.

    Raises:
        WhetError: ``gguf.unsupported`` for other kinds of tokenizer, ``gguf.vocab_mismatch`` when a token's
            id has no embedding row, ``tokenizer.broken``.
    """
    spec = files.spec()
    tokenizer = tokenizer or files.load()
    pieces = _pieces(files) if tokenizer_kind(spec) == "llama" else []
    listed = read_tokens(spec, tokenizer, rows, pieces)
    around = added_around_text(tokenizer, files, listed.kind)
    spaced = listed.kind in ("llama", "t5")
    return Vocabulary(
        model=listed.kind,
        tokens=listed.tokens,
        types=listed.types,
        merges=listed.merges,
        scores=listed.scores,
        ids=special_ids(tokenizer, files, around),
        add_bos=around.add_bos,
        add_eos=around.add_eos,
        add_space_prefix=space_prefix(tokenizer, files).add if spaced else None,
        name_mark=name_mark(tokenizer),
        chat_template=strip_generation_tags(files.chat_template) if files.chat_template else None,
        **listed.normalisation,
    )


def _pieces(files: TokenizerFiles) -> list[Piece]:
    """Those of the SentencePiece model beside tokenizer.json; none without one."""
    model = files.tokenizer_json.with_name("tokenizer.model")
    return SentencePieceModel.read(model).pieces if model.is_file() else []


def unsupported_tokenizer(folder: Path) -> str | None:
    """None when the folder's tokenizer can be written, otherwise the reason: for the plan."""
    try:
        tokenizer_kind(TokenizerFiles.read(folder).spec())
    except WhetError as error:
        return error.message
    except (AttributeError, LookupError, TypeError) as error:
        return f"The tokenizer.json of {folder} says what no tokenizer does: {type(error).__name__}: {error}"
    return None
