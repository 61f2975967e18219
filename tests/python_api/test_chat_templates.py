"""Templates on a tokenizer: by name, by text, for rows under other field names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from support.tiny_models import EOS, TURN_END, write_tokenizer
from transformers import AutoTokenizer

from whet.engine import get_chat_template, standardize_sharegpt
from whet.engine.errors import WhetError
from whet.engine.python_api.notes import WhetNote
from whet.engine.python_api.template_parts import markers_of, template_parts

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
MAPPING = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    write_tokenizer(tmp_path, "llama")
    return AutoTokenizer.from_pretrained(tmp_path)


def test_a_mapping_lets_the_template_read_other_fields(tokenizer: Any) -> None:
    plain = get_chat_template(tokenizer, "zephyr").apply_chat_template(CHAT, tokenize=False)
    mapped = get_chat_template(tokenizer, "zephyr", mapping=MAPPING)
    assert mapped.apply_chat_template(TURNS, tokenize=False) == plain
    assert mapped.apply_chat_template(CHAT, tokenize=False) == plain


def test_an_end_of_turn_that_is_a_token_becomes_the_eos(tokenizer: Any) -> None:
    source = tokenizer.chat_template
    assert get_chat_template(tokenizer, (source, TURN_END), map_eos_token=False).eos_token == EOS
    assert get_chat_template(tokenizer, (source, TURN_END)).eos_token == TURN_END


def test_an_end_of_turn_the_vocabulary_lacks_is_replaced_aloud(tokenizer: Any) -> None:
    with pytest.warns(WhetNote, match="im_end"):
        get_chat_template(tokenizer, "chatml")
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert "<|im_end|>" not in text
    assert text.rstrip().endswith(EOS)


def test_a_system_message_goes_before_conversations_without_one(tokenizer: Any) -> None:
    text = 'Answer "briefly", it\'s late.\nPlease.'
    get_chat_template(tokenizer, tokenizer.chat_template, system_message=text)
    assert f"<|system|>\n{text}{TURN_END}" in tokenizer.apply_chat_template(CHAT, tokenize=False)
    own = [{"role": "system", "content": "mine"}, *CHAT]
    assert text not in tokenizer.apply_chat_template(own, tokenize=False)


def test_names_and_texts_that_are_wrong_are_refused(tokenizer: Any) -> None:
    with pytest.raises(WhetError, match=r"llama-3\.1"):
        get_chat_template(tokenizer, "lama-3.1")
    with pytest.raises(WhetError) as refused:
        get_chat_template(tokenizer, "{% for m in messages %}")
    assert refused.value.code == "template.syntax"
    with pytest.raises(WhetError, match="rolle"):
        get_chat_template(tokenizer, "zephyr", mapping={"rolle": "from"})


def test_parts_are_learnt_from_any_template(tokenizer: Any) -> None:
    parts = template_parts(tokenizer)
    assert (parts.instruction, parts.response) == ("<|user|>\n", "<|assistant|>\n")
    assert parts.end == f"{TURN_END}\n"
    tokenizer.chat_template = None
    with pytest.raises(WhetError, match="get_chat_template"):
        markers_of(tokenizer)


@pytest.mark.parametrize("role", ["user", "system"])
def test_parts_are_learnt_in_bounds(role: str, tokenizer: Any) -> None:
    tokenizer.chat_template += "{{ 'a' * (20000000 if messages[0].role == '%s' else 0) }}" % role  # noqa: UP031
    with pytest.raises(WhetError) as caught:
        template_parts(tokenizer)
    assert caught.value.code == "template.costly"


def test_a_template_that_refuses_an_exchange_says_why(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('only monologues') }}"
    with pytest.raises(WhetError, match=r"plain user/assistant exchange: only monologues\.") as caught:
        template_parts(tokenizer)
    assert caught.value.code == "template.render"
    tokenizer.chat_template = "{{ raise_exception('no' * 9999) }}"
    with pytest.raises(WhetError, match="nono") as caught:
        template_parts(tokenizer)
    assert len(caught.value.message) < 500


def test_standardised_rows_keep_their_column() -> None:
    rows = standardize_sharegpt(Dataset.from_list([{"conversations": TURNS, "id": 7}]))
    assert rows[0] == {"conversations": CHAT, "id": 7}
