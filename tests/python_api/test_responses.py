"""Responses only: markers are found in every tokenisation, and markers that match nothing are an error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from support.tiny_models import TURN_END, write_tokenizer
from transformers import AutoTokenizer

from whet.engine import get_chat_template, train_on_responses_only
from whet.engine.data.chat_templates import TEMPLATES
from whet.engine.errors import WhetError
from whet.engine.python_api.notes import WhetNote
from whet.engine.python_api.template_parts import markers_of

ANSWERS = ("It is a number.", "é, one\nmore", "\nlines", "  spaced", "# title", "1")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    write_tokenizer(tmp_path, "llama", vocab=500)
    return AutoTokenizer.from_pretrained(tmp_path)


def chat(*answers: str) -> list[dict[str, str]]:
    turns = [({"role": "user", "content": f"Question {n}?"}, a) for n, a in enumerate(answers)]
    return [message for ask, a in turns for message in (ask, {"role": "assistant", "content": a})]


def trainer_of(rows: list[list[int]], tokenizer: Any, **more: Any) -> Any:
    """The three attributes of a trainer that matter here."""
    dataset = Dataset.from_dict({"input_ids": rows, "labels": rows})
    return SimpleNamespace(train_dataset=dataset, eval_dataset=None, processing_class=tokenizer, **more)


def rendered(tokenizer: Any, *chats: list[dict[str, str]]) -> list[list[int]]:
    return [tokenizer.apply_chat_template(one, tokenize=True, return_dict=False) for one in chats]


def supervised(row: dict[str, Any], tokenizer: Any) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != -100])


@pytest.mark.parametrize("template", ["own", *TEMPLATES])
def test_markers_derived_from_the_template_find_every_answer(template: str, tokenizer: Any) -> None:
    if template != "own":
        tokenizer = get_chat_template(tokenizer, template)
    rows = rendered(tokenizer, *(chat(answer, "second") for answer in ANSWERS))
    masked = train_on_responses_only(trainer_of(rows, tokenizer)).train_dataset
    for row, answer in zip(masked, ANSWERS, strict=True):
        text = supervised(row, tokenizer)
        assert answer.strip() in text
        assert "second" in text
        assert "Question" not in text


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_templates_listed_markers_work_when_given(name: str, tokenizer: Any) -> None:
    info = TEMPLATES[name]
    tokenizer = get_chat_template(tokenizer, name)
    rows = rendered(tokenizer, chat("first", "second"))
    trainer = train_on_responses_only(trainer_of(rows, tokenizer), info.instruction_part, info.response_part)
    text = supervised(trainer.train_dataset[0], tokenizer)
    assert "first" in text
    assert "Question" not in text


def test_the_end_of_turn_is_supervised(tokenizer: Any) -> None:
    trainer = train_on_responses_only(trainer_of(rendered(tokenizer, chat("Yes.")), tokenizer))
    assert supervised(trainer.train_dataset[0], tokenizer).strip() == f"Yes.{TURN_END}"


def test_eval_rows_are_masked_too(tokenizer: Any) -> None:
    rows = rendered(tokenizer, chat("Yes."))
    trainer = trainer_of(rows, tokenizer)
    trainer.eval_dataset = {"a": trainer.train_dataset, "b": trainer.train_dataset}
    train_on_responses_only(trainer)
    assert "Question" not in supervised(trainer.eval_dataset["b"][0], tokenizer)


@pytest.mark.parametrize(
    ("instruction", "response"),
    [("<|im_start|>user\n", "<|im_start|>assistant\n"), ("<|user|>", "[/INST]"), ("[INST]", "<|assistant|>")],
)
def test_markers_that_match_nothing_name_the_right_ones(
    instruction: str, response: str, tokenizer: Any
) -> None:
    trainer = trainer_of(rendered(tokenizer, chat("Yes.")), tokenizer)
    with pytest.raises(WhetError) as refused:
        train_on_responses_only(trainer, instruction, response)
    assert refused.value.code == "data.markers_match_nothing"
    right = markers_of(tokenizer)
    assert repr(right[0]) in refused.value.hint
    assert repr(right[1]) in refused.value.hint


def test_a_substantial_share_without_supervision_is_an_error(tokenizer: Any) -> None:
    good, *_ = rendered(tokenizer, chat("Yes."))
    cut = good[:6]
    with pytest.raises(WhetError, match=r"3 of 10 training rows"):
        train_on_responses_only(trainer_of([good] * 7 + [cut] * 3, tokenizer))


def test_a_few_cut_rows_are_dropped_aloud(tokenizer: Any) -> None:
    good, *_ = rendered(tokenizer, chat("Yes."))
    trainer = trainer_of([good] * 29 + [good[:6]], tokenizer)
    with pytest.warns(WhetNote, match="1 of 30"):
        train_on_responses_only(trainer)
    assert len(trainer.train_dataset) == 29


def test_what_was_unsupervised_stays_so(tokenizer: Any) -> None:
    (ids,) = rendered(tokenizer, chat("one two three"))
    trainer = trainer_of([ids], tokenizer)
    kept = [*[-100] * (len(ids) - 2), *ids[-2:]]
    trainer.train_dataset = Dataset.from_dict({"input_ids": [ids], "labels": [kept]})
    train_on_responses_only(trainer)
    assert trainer.train_dataset[0]["labels"] == kept


def test_packed_documents_do_not_lend_each_other_their_answers(tokenizer: Any) -> None:
    one, two = rendered(tokenizer, chat("Yes."), chat("No."))
    trainer = trainer_of([], tokenizer)
    trainer.train_dataset = Dataset.from_dict(
        {"input_ids": [one + two], "labels": [one + two], "seq_lengths": [[len(one), len(two)]]}
    )
    train_on_responses_only(trainer)
    labels = trainer.train_dataset[0]["labels"]
    assert tokenizer.bos_token_id not in labels
    assert "Yes." in tokenizer.decode([label for label in labels if label != -100])


def test_untokenised_rows_are_refused(tokenizer: Any) -> None:
    trainer = trainer_of([], tokenizer)
    trainer.train_dataset = Dataset.from_dict({"text": ["x"]})
    with pytest.raises(WhetError) as refused:
        train_on_responses_only(trainer)
    assert refused.value.code == "data.not_tokenised"
