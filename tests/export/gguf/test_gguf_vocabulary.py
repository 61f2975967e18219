"""Token ids: llama.cpp's equal to tokenizer.json's, for each kind of tokenizer, or a clear refusal."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import BOS, EOS, PAD, TEXT, TURN_END, write_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from whet.engine.data.tokenizer_files import TokenizerFiles
from whet.engine.errors import WhetError
from whet.engine.export.gguf.known_differences import KnownDifferences
from whet.engine.export.gguf.native import run_native
from whet.engine.export.gguf.pretokenizer import DEEPSEEK_3, GPT_4O, LLAMA_3, QWEN_2, QWEN_3_5, TEKKEN
from whet.engine.export.gguf.token_list import CONTROL, UNUSED, USER_DEFINED
from whet.engine.export.gguf.trial import (
    Trial,
    choose_pretokenizer,
    probe_forms,
    try_names,
    write_vocabulary_file,
)
from whet.engine.export.gguf.vocabulary import Vocabulary, read_vocabulary
from whet.engine.export.probe_corpus import probe_groups, probe_texts, with_special_tokens

ROWS = 4096


@functools.cache
def merges_across_words() -> str:
    """A byte-level BPE without any splitting, as JSON: its tokens cross all borders that a rule may draw, so
    that every difference between two rules shows in the ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(probe_texts() * 2, trainer)
    return tokenizer.to_str()


def byte_level(*parts: pre_tokenizers.PreTokenizer, ignore_merges: bool = False) -> Tokenizer:
    spec = json.loads(merges_across_words())
    spec["model"]["ignore_merges"] = ignore_merges
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(parts)) if len(parts) > 1 else parts[0]
    return tokenizer


def split(*regexes: str) -> tuple[pre_tokenizers.PreTokenizer, ...]:
    steps = [pre_tokenizers.Split(Regex(regex), behavior="isolated") for regex in regexes]
    return *steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def sentencepiece_style() -> Tokenizer:
    """As SentencePiece models look once saved as tokenizer.json alone."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False)
    trained.train_from_iterator(TEXT.read_text(encoding="utf-8").splitlines(), trainer)
    state = json.loads(trained.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: id for id, token in enumerate(dict.fromkeys([*first, *state["vocab"]]))}
    merges = [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in state["merges"]
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in first[:3]])
    return tokenizer


def save(folder: Path, tokenizer: Tokenizer, **settings: Any) -> TokenizerFiles:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return TokenizerFiles.read(folder)


def differing(files: TokenizerFiles, pre: str) -> list[str]:
    """Texts on which llama.cpp differs without a known cause, asked anew."""
    tokenizer = files.load()
    (outcome,) = Trial(tokenizer, read_vocabulary(files, ROWS), probe_forms(tokenizer)).of((pre,))
    return outcome.unexplained


KINDS: dict[str, tuple[Callable[[], Tokenizer], str, set[str]]] = {
    "llama-3": (lambda: byte_level(*split(LLAMA_3), ignore_merges=True), "llama-bpe", set()),
    "llama-3 split, merged": (lambda: byte_level(*split(LLAMA_3)), "dbrx", set()),
    "qwen-2": (lambda: byte_level(*split(QWEN_2)), "qwen2", set()),
    "qwen-3.5": (lambda: byte_level(*split(QWEN_3_5)), "qwen35", set()),
    "tekken": (lambda: byte_level(*split(TEKKEN), ignore_merges=True), "tekken", {"capitals"}),
    "gpt-4o": (lambda: byte_level(*split(GPT_4O)), "gpt-4o", {"capitals"}),
    "gpt-2, granite": (
        lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
        "gpt-2",
        set(),
    ),
    "smollm": (
        lambda: byte_level(
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        ),
        "smollm",
        set(),
    ),
    "deepseek-v3": (lambda: byte_level(*split(*DEEPSEEK_3)), "deepseek-v3", set()),
    "sentencepiece": (sentencepiece_style, "default", set()),
    # Written otherwise than any expression known to us: only the trial can find it.
    "unknown spelling": (
        lambda: byte_level(*split(LLAMA_3.replace(r"\s+(?!\S)", r"\s+(?=\s|$)"))),
        "dbrx",
        set(),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_equal(tmp_path: Path, kind: str) -> None:
    make, pre, causes = KINDS[kind]
    files = save(tmp_path / "t", make())
    vocabulary = read_vocabulary(files, ROWS)
    outcome = try_names(files, vocabulary)
    assert outcome.unexplained == []
    assert (outcome.pre, set(outcome.explained) - {"named special"}) == (pre, causes)
    # "</s>" is written in the corpus and an ordinary token of this vocabulary.
    assert outcome.explained["named special"] == (7 if vocabulary.model == "gpt2" else 0)


def test_the_corpus_tells_the_rules_apart(tmp_path: Path) -> None:
    files = save(tmp_path / "t", byte_level(*split(LLAMA_3)))
    assert differing(files, "dbrx") == []
    for wrong in ("qwen2", "gpt-2", "tekken", "smollm"):
        assert len(differing(files, wrong)) > 5, wrong


def test_sentencepiece_needs_scores_by_merge_rank(tmp_path: Path) -> None:
    files = save(tmp_path / "t", sentencepiece_style())
    right = read_vocabulary(files, ROWS)
    assert right.scores is not None
    flat = type(right)(**{**right.__dict__, "scores": [-1000.0] * ROWS})
    assert choose_pretokenizer(files, right) == "default"
    with pytest.raises(WhetError, match="default"):
        choose_pretokenizer(files, flat)


def test_a_rule_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    files = save(tmp_path / "t", byte_level(*split(r"[aeiou]+|[^aeiou]{1,2}")))
    with pytest.raises(WhetError, match="No pre-tokenizer") as caught:
        choose_pretokenizer(files, read_vocabulary(files, ROWS))
    assert caught.value.code == "gguf.unsupported"


def test_composing_tokenizers_may_differ_on_decomposed_texts_alone(tmp_path: Path) -> None:
    tokenizer = byte_level(*split(QWEN_2))
    tokenizer.normalizer = normalizers.NFC()
    known = KnownDifferences(tokenizer)
    assert known.cause("cafe\u0301") == "decomposed" and known.cause("Grüße aus Köln") is None
    files = save(tmp_path / "t", tokenizer)
    outcome = try_names(files, read_vocabulary(files, ROWS))
    assert outcome.unexplained == [] and set(outcome.explained) == {"decomposed", "named special"}
    tokenizer.normalizer = normalizers.Lowercase()
    assert KnownDifferences(tokenizer).cause("cafe\u0301") is None
    files = save(tmp_path / "t", tokenizer)
    assert try_names(files, read_vocabulary(files, ROWS)).unexplained != []


def test_roles_and_types(tmp_path: Path) -> None:
    ids = write_tokenizer(tmp_path, "llama")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [ids[TURN_END], ids[EOS]]}))
    files = TokenizerFiles.read(tmp_path)
    vocabulary = read_vocabulary(files, ids["rows"] + 6)
    assert vocabulary.ids == {"bos": ids[BOS], "eos": ids[EOS], "pad": ids[PAD], "eot": ids[TURN_END]}
    assert (vocabulary.add_bos, vocabulary.add_eos) == (True, False)
    assert vocabulary.types[-6:] == [UNUSED] * 6 and len(set(vocabulary.tokens)) == ids["rows"] + 6
    assert vocabulary.types[ids[TURN_END]] == CONTROL
    path = write_vocabulary_file(tmp_path / "v.gguf", vocabulary)
    answer = run_native(
        "whet.engine.export.gguf.vocab_process", {"path": str(path), "texts": [], "pre": None}
    )
    run = answer["runs"][0]
    assert {ids[TURN_END], ids[EOS]} <= set(run["end_of_generation"])
    assert (run["bos"], run["eos"], run["eot"], run["pad"]) == (ids[BOS], ids[EOS], ids[TURN_END], ids[PAD])
    assert (run["add_bos"], run["add_eos"], run["n_vocab"]) == (True, False, ids["rows"] + 6)


def test_qwen_adds_no_bos(tmp_path: Path) -> None:
    ids = write_tokenizer(tmp_path, "qwen2")
    assert read_vocabulary(TokenizerFiles.read(tmp_path), ids["rows"]).add_bos is False


def test_plain_added_tokens_are_user_defined(tmp_path: Path) -> None:
    tokenizer = byte_level(*split(QWEN_2))
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    files = save(tmp_path / "t", tokenizer)
    vocabulary = read_vocabulary(files, ROWS)
    assert vocabulary.types[vocabulary.tokens.index("<think>")] == USER_DEFINED
    assert differing(files, "qwen2") == []


def test_added_tokens_in_normalised_text_are_a_known_difference(tmp_path: Path) -> None:
    tokenizer = byte_level(*split(QWEN_2))
    tokenizer.normalizer = normalizers.Replace("Q", "q")
    tokenizer.add_tokens(["<Q>"])
    known = KnownDifferences(tokenizer)
    assert known.cause("a<Q>b") == known.cause("a<q>b") == "normalised token"
    assert known.cause("a Q b") is None


def test_modern_bert_swallows_the_space_before_its_mask(tmp_path: Path) -> None:
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_special_tokens(["[CLS]", AddedToken("[MASK]", lstrip=True)])
    files = save(tmp_path / "t", tokenizer)
    vocabulary = read_vocabulary(files, ROWS)
    assert vocabulary.name_mark == "modern-bert"
    outcome = try_names(files, vocabulary)
    assert outcome.unexplained == [] and set(outcome.explained) == {"named special"}
    unmarked = Vocabulary(**{**vocabulary.__dict__, "name_mark": ""})
    assert any("[MASK]" in text for text in try_names(files, unmarked).unexplained)


def test_two_tokens_of_one_id_are_refused(tmp_path: Path) -> None:
    tokenizer = byte_level(*split(QWEN_2))
    spec = json.loads(tokenizer.to_str())
    merge = spec["model"]["merges"].pop(-2)
    del spec["model"]["vocab"]["".join(merge)]  # a hole, for which the added token gets an id that is taken
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.add_special_tokens(["<new>"])
    files = save(tmp_path / "t", tokenizer)
    with pytest.raises(WhetError, match="share the id") as caught:
        read_vocabulary(files, ROWS)
    assert caught.value.code == "gguf.unsupported"


def test_generation_tags_are_stripped(tmp_path: Path) -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    files = save(tmp_path / "t", byte_level(*split(QWEN_2)), chat_template=source)
    template = read_vocabulary(files, ROWS).chat_template
    assert template is not None and "generation" not in template and "m.content" in template


def test_tokens_beyond_the_embedding_are_refused(tmp_path: Path) -> None:
    ids = write_tokenizer(tmp_path, "llama")
    with pytest.raises(WhetError, match="without an embedding row") as caught:
        read_vocabulary(TokenizerFiles.read(tmp_path), ids["rows"] - 3)
    assert caught.value.code == "gguf.vocab_mismatch"


def test_the_corpus_is_varied() -> None:
    texts = probe_texts()
    assert len(set(texts)) == len(texts) >= 800
    wanted = "scripts", "emoji", "code", "numbers", "whitespace", "combining marks", "control characters"
    others = "looks special", "very long words", "mixed scripts", "right to left", "languages"
    assert min(len(probe_groups()[group]) for group in (*wanted, *others)) >= 25


def test_special_tokens_are_probed_at_both_ends_of_their_list() -> None:
    forms = with_special_tokens([], [f"<{n}>" for n in range(300)])
    assert "before<0>after" in forms and "before<299>after" in forms and "<150>" not in forms
    assert len(forms) == len(set(forms))
