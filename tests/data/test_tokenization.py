"""Ids and labels: one BOS, one end, the answer supervised and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_tokenizers import byte_level, metaspace, model_dir
from tokenizers import Tokenizer

from whet.engine.data.chat_templates import TEMPLATES, find
from whet.engine.data.formats import Example
from whet.engine.data.masking import IGNORE
from whet.engine.data.rows import RowError
from whet.engine.data.tokenization import RowTokenizer, TokenizerFiles, TokenRow
from whet.engine.errors import WhetError

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
CHAT = Example(
    messages=[
        {"role": "user", "content": "What is two and two?"},
        {"role": "assistant", "content": "It is four 👍🏽"},
    ]
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_dir(tmp_path / "model", byte_level(prefix=BOS))


def learnt(tokenizer: RowTokenizer, row: TokenRow) -> str:
    ids = [label for label in row.labels if label != IGNORE]
    return tokenizer.tokenizer.decode(ids, skip_special_tokens=False)


def text_of(tokenizer: RowTokenizer, row: TokenRow) -> str:
    return tokenizer.tokenizer.decode(row.input_ids, skip_special_tokens=False)


def encode(tokenizer: RowTokenizer, example: Example, max_length: int | None = None) -> TokenRow:
    return tokenizer.encode_examples([example], max_length)[0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_rows_have_the_templates_tokens_only(folder: Path, name: str) -> None:
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(folder), name)
    row = encode(tokenizer, CHAT)
    assert tokenizer.renderer is not None and CHAT.messages is not None
    assert text_of(tokenizer, row) == tokenizer.renderer.render(CHAT.messages)
    assert row.input_ids.count(tokenizer.bos_id or -1) <= 1
    answer = learnt(tokenizer, row).split("</think>")[-1].strip()
    end = find(name).end_of_turn or EOS
    assert answer == f"It is four 👍🏽{' ' if name == 'llama-2' else ''}{end}"
    assert row.labels[-1] in tokenizer.end_ids | {IGNORE}
    assert row.supervised == sum(label != IGNORE for label in row.labels)


def test_text_rows_get_one_bos_and_one_eos(folder: Path) -> None:
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(folder), "llama-3.1")
    row = encode(tokenizer, Example(text="A small rank is enough."))
    assert text_of(tokenizer, row) == f"{BOS}A small rank is enough.{EOS}"
    assert row.labels == row.input_ids


@pytest.mark.parametrize("end", [EOS, "<|eot_id|>", "<|eot_id|>\n"])
def test_text_that_a_template_rendered_gets_neither_twice(folder: Path, end: str) -> None:
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(folder), "llama-3.1")
    text = f"{BOS}<|start_header_id|>user<|end_header_id|>\n\nHi{end}"
    assert text_of(tokenizer, encode(tokenizer, Example(text=text))) == text


@pytest.mark.parametrize(("asked", "expected"), [(None, True), (True, True), (False, False)])
def test_the_configuration_decides_on_bos(tmp_path: Path, asked: bool | None, expected: bool) -> None:
    folder = model_dir(tmp_path / "model", byte_level(prefix=BOS), add_bos_token=asked)
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(folder))
    assert (encode(tokenizer, Example(text="Hi")).input_ids[0] == tokenizer.bos_id) is expected


def test_without_template_the_completion_is_supervised(folder: Path) -> None:
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(folder))
    row = encode(tokenizer, Example(prompt="What is it?\n", completion="It is four."))
    assert text_of(tokenizer, row) == f"{BOS}What is it?\nIt is four.{EOS}"
    assert learnt(tokenizer, row) == f"It is four.{EOS}"


def test_with_template_prompt_and_completion_become_messages(folder: Path) -> None:
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(folder), "chatml")
    row = encode(tokenizer, Example(prompt="What?", completion="Four."))
    assert text_of(tokenizer, row) == (
        "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n"
    )
    assert learnt(tokenizer, row) == "Four.<|im_end|>"


def test_all_tokens_supervised_on_request(folder: Path) -> None:
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(folder), "chatml")
    row = tokenizer.encode_examples([CHAT], supervise="all")[0]
    assert row.labels == row.input_ids


def test_a_template_without_clear_spans_serves_where_none_are_needed(tmp_path: Path) -> None:
    own = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}"
    files = TokenizerFiles.read(model_dir(tmp_path / "model", chat_template=own))
    tokenizer = RowTokenizer.from_files(files)
    row = tokenizer.encode_examples([CHAT], supervise="all")[0]
    assert learnt(tokenizer, row).startswith("user: WHAT IS TWO")
    assert learnt(tokenizer, encode(tokenizer, Example(text="Hi"))) == f"Hi{EOS}"
    with pytest.raises(WhetError, match="Cannot tell"):
        encode(tokenizer, CHAT)


def test_the_models_own_template_unless_told_otherwise(tmp_path: Path) -> None:
    own = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    files = TokenizerFiles.read(model_dir(tmp_path / "model", chat_template=own))
    row = encode(RowTokenizer.from_files(files), CHAT)
    # The header's last space is in the first word's token.
    assert learnt(RowTokenizer.from_files(files), row) == f" It is four 👍🏽{EOS}"
    told = RowTokenizer.from_files(files, "gemma-3")
    assert learnt(told, encode(told, CHAT)) == "It is four 👍🏽<end_of_turn>"


def test_templates_file_wins_over_the_configuration(tmp_path: Path) -> None:
    folder = model_dir(tmp_path / "model", chat_template=[{"name": "default", "template": "old"}])
    assert TokenizerFiles.read(folder).chat_template == "old"
    (folder / "chat_template.jinja").write_text("new")
    assert TokenizerFiles.read(folder).chat_template == "new"


def test_conversations_need_a_template(folder: Path) -> None:
    with pytest.raises(WhetError, match="no chat template") as error:
        encode(RowTokenizer.from_files(TokenizerFiles.read(folder)), CHAT)
    assert error.value.code == "template.missing" and "data.template" in error.value.hint


def test_a_refusing_template_is_the_rows_fault(folder: Path) -> None:
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(folder), "gemma")
    with pytest.raises(RowError, match="alternate"):
        encode(tokenizer, Example(messages=[{"role": "assistant", "content": "Hi"}]))


def test_spans_that_one_row_makes_unclear_are_the_rows_fault(tmp_path: Path) -> None:
    end = "{{ 'bye' if 'odd' in m.content else eos_token }}"
    own = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "{% endfor %}"
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(model_dir(tmp_path / "m", chat_template=own)))
    odd = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "odd"}]
    with pytest.raises(RowError, match="message 2: what follows it depends on its content"):
        encode(tokenizer, Example(messages=odd))


def test_truncation_is_counted(folder: Path) -> None:
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(folder), "chatml")
    whole = encode(tokenizer, CHAT)
    cut = encode(tokenizer, CHAT, len(whole.input_ids) - 4)
    assert cut.truncated and cut.input_ids == whole.input_ids[:-4]
    assert 0 < cut.supervised < cut.full_supervised == whole.supervised
    assert cut.full_length == len(whole.input_ids)
    lost = encode(tokenizer, CHAT, 5)
    assert lost.truncated and lost.supervised == 0 and lost.full_supervised == whole.supervised


def test_long_text_continues_in_windows(folder: Path) -> None:
    tokenizer = RowTokenizer.from_files(TokenizerFiles.read(folder))
    text = "The model learns. " * 40
    whole = encode(tokenizer, Example(text=text))
    rows = tokenizer.encode_examples([Example(text="Hi"), Example(text=text)], 32, split_text=True)
    assert [row.example for row in rows] == [0] + [1] * (len(rows) - 1)
    assert [id for row in rows[1:] for id in row.input_ids] == whole.input_ids
    assert [row.last for row in rows[1:]] == [False] * (len(rows) - 2) + [True]
    assert not any(row.truncated for row in rows)


def test_space_carrying_tokens_at_the_edge_are_supervised() -> None:
    from whet.engine.data.chat_templates.renderer import Renderer

    tokenizer = metaspace()
    rows = RowTokenizer(tokenizer, "<s>", "</s>", Renderer(find("llama-2").source, "<s>", "</s>"))
    messages = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is four"}]
    row = encode(rows, Example(messages=messages))
    pieces = [str(tokenizer.id_to_token(label)) for label in row.labels if label != IGNORE]
    assert "".join(pieces).replace("▁", " ").split() == ["It", "is", "four", "</s>"]
    assert pieces[0].startswith("▁")


def test_tokens_that_only_the_configuration_names(tmp_path: Path) -> None:
    plain = byte_level(specials=(EOS,))
    size = plain.get_vocab_size()
    tokens = ("<|im_start|>", "<|im_end|>")
    added = {str(size + at): {"content": tokens[at], "special": True} for at in (1, 0)}
    folder = model_dir(tmp_path / "model", plain, added_tokens_decoder=added)
    tokenizer = TokenizerFiles.read(folder).load()
    assert [tokenizer.token_to_id(text) for text in (*tokens, BOS)] == [size, size + 1, size + 2]
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert theirs.convert_tokens_to_ids([*tokens, BOS]) == [size, size + 1, size + 2]


def test_missing_and_broken_tokenizers(tmp_path: Path) -> None:
    def code() -> str:
        with pytest.raises(WhetError) as error:
            TokenizerFiles.read(tmp_path).load()
        return error.value.code

    assert code() == "tokenizer.missing"
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    assert code() == "tokenizer.slow"
    (tmp_path / "tokenizer.json").write_text("{}")
    assert code() == "tokenizer.broken"
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert code() == "tokenizer.config"


def test_facts_of_the_files(tmp_path: Path) -> None:
    folder = model_dir(tmp_path / "m", eos_token={"content": "</s>", "special": True}, model_max_length=1e30)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 6]}))
    files = TokenizerFiles.read(folder)
    assert (files.bos_token, files.eos_token, files.model_max_length) == (BOS, "</s>", None)
    assert files.generation_eos_ids == (3, 6)
    before = files.digest()
    byte_level(vocabulary=300).save(str(folder / "tokenizer.json"))
    assert TokenizerFiles.read(folder).digest() != before


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    folder = model_dir(tmp_path / "model", tokenizer)
    row = encode(RowTokenizer.from_files(TokenizerFiles.read(folder)), Example(text="Hello my friend"))
    assert text_of(RowTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json"))), row).startswith(
        "Hello my friend"
    )
