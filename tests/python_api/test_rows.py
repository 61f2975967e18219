"""Rows become the ids the template says: one BOS, one end, whatever form the script hands them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from support.tiny_models import BOS, EOS, TURN_END, write_tokenizer
from transformers import AutoTokenizer

from whet.engine import SFTConfig, get_chat_template
from whet.engine.data.chat_templates import TEMPLATES
from whet.engine.errors import WhetError
from whet.engine.python_api.rows import tokenise_dataset

CHAT = [
    {"role": "user", "content": "What is two?"},
    {"role": "assistant", "content": "It is a number."},
    {"role": "user", "content": "And three?"},
    {"role": "assistant", "content": "It is one more."},
]


@pytest.fixture(params=["llama", "qwen2"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Llama's adds a BOS to plain text, Qwen's does not."""
    write_tokenizer(tmp_path, request.param)
    return AutoTokenizer.from_pretrained(tmp_path)


def rows_of(rows: list[dict[str, Any]], tokenizer: Any, **options: Any) -> list[dict[str, Any]]:
    settings = {
        "formatting_func": None,
        "prefer_text": False,
        "completion_only": None,
        "name": "train",
        **{
            k: v
            for k, v in options.items()
            if k in ("formatting_func", "prefer_text", "completion_only", "only_assistant")
        },
    }
    args = SFTConfig("out", **{k: v for k, v in options.items() if k not in settings})
    return list(tokenise_dataset(Dataset.from_list(rows), tokenizer, args, **settings))


def supervised_text(row: dict[str, Any], tokenizer: Any) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != -100])


@pytest.mark.parametrize("template", ["own", *TEMPLATES])
def test_text_rendered_by_the_template_is_tokenised_as_the_template(template: str, tokenizer: Any) -> None:
    """The property: the text's ids are those of rendering with tokenisation, up to one missing EOS."""
    if template != "own":
        tokenizer = get_chat_template(tokenizer, template)
    expected = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    (row,) = rows_of([{"text": text}], tokenizer)
    if row["input_ids"] != expected:
        # A template that writes no end of turn at all leaves the row without a stop.
        assert row["input_ids"] == [*expected, tokenizer.eos_token_id]
        assert not text.rstrip().endswith((tokenizer.eos_token, TURN_END))
    double = [tokenizer.bos_token_id, tokenizer.bos_token_id]
    assert row["input_ids"][:2] != double
    assert row["labels"] == row["input_ids"]


def test_plain_text_gets_its_bos_and_one_eos(tokenizer: Any) -> None:
    plain, ended = rows_of([{"text": "A story."}, {"text": f"A story.{EOS}"}], tokenizer)
    begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert plain["input_ids"] == ended["input_ids"]
    assert tokenizer.decode(plain["input_ids"]) == f"{BOS if begins else ''}A story.{EOS}"


def test_a_bos_written_out_is_the_only_one(tokenizer: Any) -> None:
    (row,) = rows_of([{"text": f"{BOS}A story."}], tokenizer)
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1


def test_add_special_tokens_false_leaves_the_bos_out(tokenizer: Any) -> None:
    (row,) = rows_of([{"text": "A story."}], tokenizer, dataset_kwargs={"add_special_tokens": False})
    assert row["input_ids"][0] != tokenizer.bos_token_id


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_chats_are_the_template_and_nothing_else(column: str, tokenizer: Any) -> None:
    (row,) = rows_of([{column: CHAT}], tokenizer)
    assert row["input_ids"] == tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    assert row["labels"] == row["input_ids"]


def test_assistant_only_loss_follows_from_the_template(tokenizer: Any) -> None:
    (row,) = rows_of([{"messages": CHAT}], tokenizer, only_assistant=True)
    assert supervised_text(row, tokenizer) == f"It is a number.{TURN_END}It is one more.{TURN_END}"


def test_sharegpt_turns_need_no_standardising(tokenizer: Any) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    (row,) = rows_of([{"conversations": turns}], tokenizer)
    assert f"<|user|>\nHi{TURN_END}\n<|assistant|>\nHello{TURN_END}" in tokenizer.decode(row["input_ids"])


def test_completions_only_are_supervised(tokenizer: Any) -> None:
    pair = {"prompt": "Two and two is", "completion": " four"}
    (row,) = rows_of([pair], tokenizer)
    assert supervised_text(row, tokenizer) == f" four{EOS}"
    (row,) = rows_of([pair], tokenizer, completion_only=False)
    assert row["labels"] == row["input_ids"]
    chat = {"prompt": CHAT[:1], "completion": CHAT[1:2]}
    (row,) = rows_of([chat], tokenizer)
    assert supervised_text(row, tokenizer).strip() == f"It is a number.{TURN_END}"


def test_alpaca_rows_become_turns(tokenizer: Any) -> None:
    (row,) = rows_of([{"instruction": "Add", "input": "2, 2", "output": "4"}], tokenizer)
    assert f"<|user|>\nAdd\n\n2, 2{TURN_END}" in tokenizer.decode(row["input_ids"])


@pytest.mark.parametrize(
    "formatting_func",
    [
        lambda row: f"Q: {row['q']} A: {row['a']}",
        lambda row: [f"Q: {row['q']} A: {row['a']}"],
        lambda batch: [f"Q: {q} A: {a}" for q, a in zip(batch["q"], batch["a"], strict=True)],
    ],
    ids=["one text", "a list of one", "a batch"],
)
def test_formatting_func_in_every_form(formatting_func: Any, tokenizer: Any) -> None:
    rows = [{"q": f"q{n}", "a": f"a{n}"} for n in range(3)]
    made = rows_of(rows, tokenizer, formatting_func=formatting_func)
    texts = [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in made]
    assert texts == [f"Q: q{n} A: a{n}" for n in range(3)]


def test_formatting_func_may_make_several_rows_of_one(tokenizer: Any) -> None:
    made = rows_of([{"q": "x"}], tokenizer, formatting_func=lambda row: [row["q"] + "1", row["q"] + "2", "3"])
    assert len(made) == 3


def test_a_named_text_column_wins_over_chats(tokenizer: Any) -> None:
    row = {"messages": CHAT, "text": "A story."}
    assert "story" in tokenizer.decode(rows_of([row], tokenizer, prefer_text=True)[0]["input_ids"])
    assert "two" in tokenizer.decode(rows_of([row], tokenizer)[0]["input_ids"])


def test_unreadable_columns_are_named(tokenizer: Any) -> None:
    with pytest.raises(WhetError, match=r"columns foo, .*'text'") as refused:
        rows_of([{"foo": "x", "bar": "y"}], tokenizer)
    assert refused.value.code == "data.no_text"
