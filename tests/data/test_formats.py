"""Layouts are recognised, rows become examples, and what is wrong with a row is said."""

from __future__ import annotations

from typing import Any

import pytest

from whet.engine.data.formats import FormatName, sniff, standardize_sharegpt, to_example
from whet.engine.data.messages import CALLS, ROLES, alternates
from whet.engine.data.rows import RawRow, RowError
from whet.engine.errors import WhetError
from whet.engine.recipe import DataSection

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
SECTION = DataSection(train="x")


def row(value: dict[str, Any]) -> RawRow:
    return RawRow("file.jsonl", 7, value)


LAYOUTS: list[tuple[dict[str, Any], FormatName]] = [
    ({"text": "a"}, "text"),
    ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
    ({"instruction": "a", "output": "b", "text": "all of it"}, "alpaca"),
    ({"conversations": SHAREGPT}, "sharegpt"),
    ({"messages": TURNS, "text": "x"}, "messages"),
    ({"conversations": TURNS}, "messages"),
    ({"prompt": "a", "completion": "b"}, "prompt_completion"),
]


@pytest.mark.parametrize(("value", "format"), LAYOUTS)
def test_layouts_are_recognised(value: dict[str, Any], format: FormatName) -> None:
    guess = sniff([row(value)] * 3)
    assert (guess.format, guess.confidence) == (format, 1.0)
    example = to_example(row(value), format, SECTION)
    assert example.content()


def test_mixed_rows_lower_the_confidence() -> None:
    guess = sniff([row({"text": "a"})] * 3 + [row({"messages": TURNS})])
    assert (guess.format, guess.confidence) == ("text", 0.75)
    assert "messages 1" in guess.reason


def test_unknown_rows_are_described() -> None:
    guess = sniff([row({"question": "a", "reply": "b"})])
    assert guess.format is None and guess.confidence == 0 and "question, reply" in guess.reason
    assert "preference data" in sniff([row({"chosen": "a", "rejected": "b"})]).reason
    assert sniff([]).format is None


def test_columns_are_renamed() -> None:
    columns = {"instruction": "question", "output": "reply"}
    value = {"question": "a", "reply": "b"}
    assert sniff([row(value)], columns).format == "alpaca"
    example = to_example(row(value), "alpaca", DataSection(train="x", columns=columns))
    assert example.messages == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_alpaca_joins_instruction_and_input() -> None:
    value = {"instruction": "Add.", "input": "2 and 2", "output": "4"}
    assert to_example(row(value), "alpaca", SECTION).messages == [
        {"role": "user", "content": "Add.\n\n2 and 2"},
        {"role": "assistant", "content": "4"},
    ]


def test_a_system_message_is_added_where_there_is_none() -> None:
    section = DataSection(train="x", system="Be kind.")
    added = to_example(row({"messages": TURNS}), "messages", section)
    assert added.messages == [{"role": "system", "content": "Be kind."}, *TURNS]
    own = [{"role": "system", "content": "Mine."}, *TURNS]
    assert to_example(row({"messages": own}), "messages", section).messages == own


def test_prompts_may_be_messages() -> None:
    value = {"prompt": TURNS[:1], "completion": TURNS[1:]}
    assert to_example(row(value), "prompt_completion", SECTION).messages == TURNS
    half = {"prompt": "Hi", "completion": TURNS[1:]}
    assert to_example(row(half), "prompt_completion", SECTION).messages == TURNS


def test_text_parts_of_multimodal_content() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}]
    assert to_example(row({"messages": messages}), "messages", SECTION).messages == [
        {"role": "user", "content": "ab"}
    ]


def test_a_reply_that_only_calls_tools() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "search"}]}
    messages = to_example(row({"messages": [TURNS[0], call]}), "messages", SECTION).messages
    function = {"name": "search", "arguments": {}}
    assert messages is not None
    assert messages[1] == {**call, "content": "", "tool_calls": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("value", "format", "reason"),
    [
        ({"instruction": "a"}, "alpaca", "field 'output' is missing"),
        ({"instruction": None, "output": "b"}, "alpaca", "field 'instruction' is null"),
        ({"instruction": " ", "output": "b"}, "alpaca", "field 'instruction' is empty"),
        ({"instruction": "a", "input": 3, "output": "b"}, "alpaca", "field 'input' is int"),
        ({"text": 5}, "text", "field 'text' is int, expected text"),
        ({"text": ""}, "text", "is empty"),
        ({"text": "a\0b"}, "text", "NUL character"),
        ({"text": "a\ud800b"}, "text", "half of a surrogate pair at character 2"),
        ({"text": "\ufdd0"}, "text", "noncharacters"),
        ({"prompt": "a", "completion": None}, "prompt_completion", "'completion' is null"),
        ({"prompt": [], "completion": "b"}, "prompt_completion", "'prompt' is an empty list"),
        ({"messages": None}, "messages", "'messages' is null"),
        ({"messages": "Hi"}, "messages", "is str, expected a list"),
        ({"messages": []}, "messages", "is an empty list"),
        ({"messages": ["Hi"]}, "messages", "message 1 is str"),
        ({"messages": [{"content": "Hi"}]}, "messages", "message 1 has no role"),
        (
            {"messages": [*TURNS, {"role": "narrator", "content": "x"}]},
            "messages",
            "message 3 has the unknown",
        ),
        ({"messages": [{"role": 3, "content": "x"}]}, "messages", "unknown role 3"),
        ({"messages": [{"role": ["x" * 999], "content": "x"}]}, "messages", "xxx… (known: system"),
        ({"messages": [{"role": "user"}]}, "messages", "message 1 (user) has no content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "has null content"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages", "content is dict"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
            "part of kind 'image_url'",
        ),
        ({"messages": TURNS, "tools": "x"}, "messages", "field 'tools' is str"),
        ({"text": "a"}, "messages", "field 'messages' is missing (fields: 'text')"),
    ],
)
def test_what_is_wrong_with_a_row(value: dict[str, Any], format: FormatName, reason: str) -> None:
    with pytest.raises(RowError) as error:
        to_example(row(value), format, SECTION)
    assert reason in error.value.reason


def test_order_of_turns() -> None:
    system, user, assistant = ({"role": role, "content": "x"} for role in ("system", "user", "assistant"))
    assert alternates([system, user, assistant, user, assistant])
    assert not alternates([user, user, assistant])
    assert not alternates([user, assistant, user])
    assert not alternates([assistant, user, assistant])
    assert not alternates([user, system, assistant])
    assert not alternates([system])


def test_standardize_a_list() -> None:
    before = [{"conversations": SHAREGPT, "id": 3}]
    assert standardize_sharegpt(before) == [{"conversations": TURNS, "id": 3}]
    assert before == [{"conversations": SHAREGPT, "id": 3}]
    assert standardize_sharegpt([{"conversations": TURNS}]) == [{"conversations": TURNS}]


def test_standardize_a_dataset() -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"conversations": SHAREGPT, "id": 3}] * 2)
    assert standardize_sharegpt(rows).to_list() == [{"conversations": TURNS, "id": 3}] * 2
    stream = datasets.IterableDataset.from_generator(lambda: iter([{"conversations": SHAREGPT}]))
    assert list(standardize_sharegpt(stream)) == [{"conversations": TURNS}]


def test_standardize_names_the_row() -> None:
    with pytest.raises(
        WhetError, match="Row 1 cannot be standardised: message 1 has the unknown role"
    ) as error:
        standardize_sharegpt(
            [{"conversations": SHAREGPT}, {"conversations": [{"from": "narrator", "value": "x"}]}]
        )
    assert error.value.code == "data.sharegpt"
    with pytest.raises(WhetError, match="'conversations' is missing"):
        standardize_sharegpt([{"text": "x"}])


@pytest.mark.parametrize("spelling", ROLES)
def test_roles_under_any_spelling(spelling: str) -> None:
    said = '{"name": "search"}' if spelling in CALLS else "x"
    example = to_example(
        row({"messages": [{"role": spelling.upper(), "content": said}]}), "messages", SECTION
    )
    assert example.messages is not None
    one = example.messages[0]
    assert (one["role"], one["content"]) == (ROLES[spelling], "" if spelling in CALLS else "x")
    assert ("tool_calls" in one) == (spelling in CALLS)
