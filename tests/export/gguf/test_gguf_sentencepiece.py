"""SentencePiece's BPE: ids equal with and without tokenizer.model, whatever is done with spaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.kind_tokenizers import (
    BYTE_FALLBACK,
    save,
    sentencepiece_bpe,
    sentencepiece_bytes,
    sentencepiece_model,
)
from tokenizers import AddedToken, Tokenizer

from whet.engine.data.tokenizer_files import TokenizerFiles
from whet.engine.errors import WhetError
from whet.engine.export.gguf.sentencepiece_model import SentencePieceModel
from whet.engine.export.gguf.space_prefix import space_prefix
from whet.engine.export.gguf.stripping import PHI_3, PHI_3_EXEMPT
from whet.engine.export.gguf.token_list import BYTE, UNKNOWN, USER_DEFINED
from whet.engine.export.gguf.trial import Trial, probe_forms, try_names
from whet.engine.export.gguf.vocabulary import Vocabulary, read_vocabulary

ROWS = 4096
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
INSTRUCT = "{{ bos_token }}{% for m in messages %}[INST]{{ m['content'] }}[/INST]{% endfor %}"
PLAIN = "{% for m in messages %}User: {{ m['content'] }}\n{% endfor %}"


def write(folder: Path, tokenizer: Tokenizer, with_model: bool = False, **settings: Any) -> TokenizerFiles:
    files = save(folder / "t", tokenizer, **SPECIALS, **settings)
    if with_model:
        (folder / "t" / "tokenizer.model").write_bytes(sentencepiece_bytes("bpe", **BYTE_FALLBACK))
    return files


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("spaces", ["every", "never"])
def test_llama_2_and_gemma_are_exact(tmp_path: Path, spaces: str, with_model: bool) -> None:
    files = write(tmp_path, sentencepiece_bpe(spaces), with_model)
    vocabulary = read_vocabulary(files, ROWS)
    assert vocabulary.model == "llama" and vocabulary.add_space_prefix is (spaces == "every")
    outcome = try_names(files, vocabulary)
    assert outcome.unexplained == [] and not outcome.explained
    pieces = sentencepiece_model("bpe", **BYTE_FALLBACK).pieces
    assert vocabulary.scores is not None
    assert (vocabulary.scores[: len(pieces)] == [piece.score for piece in pieces]) is with_model
    assert (vocabulary.types[0], vocabulary.types[3]) == (UNKNOWN, BYTE)


@pytest.mark.parametrize("spaces", ["always", "first"])
def test_metaspace_differs_in_the_first_space_alone(tmp_path: Path, spaces: str) -> None:
    files = write(tmp_path, sentencepiece_bpe(spaces))
    vocabulary = read_vocabulary(files, ROWS)
    assert vocabulary.add_space_prefix is True
    outcome = try_names(files, vocabulary)
    assert outcome.unexplained == [] and set(outcome.explained) == {"first space"}


def test_the_template_decides_about_the_first_space(tmp_path: Path) -> None:
    tokenizer = sentencepiece_bpe("first")
    tokenizer.add_special_tokens(["[INST]", "[/INST]"])
    files = write(tmp_path, tokenizer, chat_template=INSTRUCT)
    assert space_prefix(tokenizer, files).lead == "<s>"
    vocabulary = read_vocabulary(files, ROWS)
    assert vocabulary.add_space_prefix is False
    # Behind the token that conversations begin with, nothing differs at all; with the space added, much does.
    outcome = try_names(files, vocabulary)
    assert outcome.unexplained == [] and not outcome.explained
    spaced = Vocabulary(**{**vocabulary.__dict__, "add_space_prefix": True})
    assert try_names(files, spaced).explained["first space"] > 1000
    plain = write(tmp_path, tokenizer, chat_template=PLAIN)
    assert space_prefix(tokenizer, plain) == space_prefix(tokenizer, write(tmp_path, tokenizer))
    assert read_vocabulary(plain, ROWS).add_space_prefix is True


def test_another_tokenizer_model_is_not_believed(tmp_path: Path) -> None:
    files = write(tmp_path, sentencepiece_bpe())
    other = sentencepiece_bytes("bpe", 3000, **BYTE_FALLBACK)
    pieces = SentencePieceModel.parse(other).pieces
    files.tokenizer_json.with_name("tokenizer.model").write_bytes(
        sentencepiece_bytes("unigram", **BYTE_FALLBACK)
    )
    vocabulary = read_vocabulary(files, ROWS)
    assert vocabulary.scores is not None and vocabulary.scores[: len(pieces)] != [p.score for p in pieces]
    assert try_names(files, vocabulary).unexplained == []


@pytest.mark.parametrize("broken", [b"", b"not a model", b"\x0a\xff", b"\x0a\x03\x12\x01a"])
def test_a_broken_tokenizer_model_is_named(tmp_path: Path, broken: bytes) -> None:
    files = write(tmp_path, sentencepiece_bpe())
    files.tokenizer_json.with_name("tokenizer.model").write_bytes(broken)
    with pytest.raises(WhetError, match=r"tokenizer\.model") as caught:
        read_vocabulary(files, ROWS)
    assert caught.value.code == "tokenizer.broken"


def phi_3(tmp_path: Path) -> TokenizerFiles:
    tokenizer = sentencepiece_bpe("every")
    texts = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"]
    flags = [
        AddedToken(text, normalized=False, rstrip=text not in PHI_3_EXEMPT, special=text != "</s>")
        for text in texts
    ]
    tokenizer.add_tokens(flags)
    return write(tmp_path, tokenizer)


def test_phi_3_swallows_spaces_by_its_name(tmp_path: Path) -> None:
    files = phi_3(tmp_path)
    vocabulary = read_vocabulary(files, ROWS)
    assert vocabulary.name_mark == PHI_3
    assert vocabulary.types[vocabulary.tokens.index("</s>")] == USER_DEFINED
    outcome = try_names(files, vocabulary)
    assert outcome.unexplained == [] and not outcome.explained
    unmarked = Vocabulary(**{**vocabulary.__dict__, "name_mark": ""})
    assert len(try_names(files, unmarked).unexplained) > 10


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        ({"lstrip": True}, "swallowed space"),
        ({"rstrip": True}, "swallowed space"),
        ({"single_word": True}, "within a word"),
    ],
)
def test_other_flags_are_known_differences(tmp_path: Path, flags: dict[str, bool], cause: str) -> None:
    tokenizer = sentencepiece_bpe("never")
    tokenizer.add_tokens(
        [AddedToken("<mark>", normalized=False, **flags), AddedToken("<x>", normalized=False)]
    )
    files = write(tmp_path, tokenizer)
    vocabulary = read_vocabulary(files, ROWS)
    trial = Trial(tokenizer, vocabulary, probe_forms(tokenizer))
    (outcome,) = trial.of(("default",))
    assert outcome.unexplained == [] and set(outcome.explained) == {cause}
    # Few, and all of them hold the token.
    assert outcome.explained.total() < 6
    assert trial.known.cause("before<x>after and <x> alone") is None
