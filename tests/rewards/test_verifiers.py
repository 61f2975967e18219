"""Built-in verifiers, one completion at a time."""

from __future__ import annotations

from typing import Any

import pytest

from whet.engine.errors import WhetError
from whet.engine.rewards.spec import ExactAnswer, JSONSchema, NumberAnswer
from whet.engine.rewards.verifiers.answers import answer_in, exact_answer, text_of
from whet.engine.rewards.verifiers.numbers import last_number, number
from whet.engine.rewards.verifiers.registry import check_rows
from whet.engine.rewards.verifiers.shape import fenced, json_schema, length, matches


def test_a_chat_completion_is_its_words() -> None:
    assert text_of("plain") == "plain"
    assert text_of([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": None}]) == "a\n"
    assert text_of([{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]) == "b"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"),
        ("<think>#### 1</think>#### 42", " 42"),
        ("6 * 7 = 42\n#### 42\nDone.", "42"),
        ("<answer>41</answer> no: <answer> 42 </answer>", " 42 "),
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"<answer>\boxed{7}</answer>", "7"),
        (r"\boxed{1} then \boxed{2", "1"),
        ("<think>it is 42", ""),
    ],
)
def test_where_the_answer_stands(text: str, answer: str) -> None:
    found = answer_in(text)
    assert found is not None and found.strip() == answer.strip()


def test_ones_own_pattern_finds_the_answer() -> None:
    assert answer_in("x=1, x=2", r"x=(\d)") == "2"
    assert answer_in("x=1, x=2", r"x=\d") == "x=2"
    assert answer_in("none", r"x=(\d)") is None


@pytest.mark.parametrize(
    ("text", "right", "score"),
    [
        ("Paris", "paris", 1),
        ("  The   Answer.", "the answer", 1),
        ("<answer>“Paris”!</answer>", "Paris", 1),
        ("It is Paris", "Paris", 0),
        ("Rome", ["Paris", "Rome"], 1),
        ("#### 72", "They bought 72.\n#### 72", 1),
        ("72", 72, 1),
        ("", "", 0),
        (".", "!", 0),
    ],
)
def test_exact_answers(text: str, right: Any, score: float) -> None:
    assert exact_answer(text, right) == score


def test_a_strict_answer_has_its_case_and_punctuation() -> None:
    assert exact_answer(" Paris\n", "Paris", strict=True) == 1
    assert exact_answer("paris", "Paris", strict=True) == exact_answer("Paris.", "Paris", strict=True) == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", 1234.5),
        ("it is 3/4 of it", 0.75),
        (r"-\frac{3}{4}", -0.75),
        ("6.02e23", 6.02e23),
        ("10-3", 3),
        ("is -3.", -3),
        ("− 7 or −3", -3),
        ("- 3 apples", 3),
        ("$1,000", 1000),
        ("-$5", -5),
        ("1 then 2, 3", 3),
        ("12 for 3/0", 12),
        ("**42**", 42),
        ("1" * 5000, None),
        ("v2 of abc12", None),
        ("none", None),
    ],
)
def test_the_last_number(text: str, value: float | None) -> None:
    found = last_number(text)
    assert (None if found is None else float(found.written)) == value


@pytest.mark.parametrize(
    ("text", "right", "settings", "score"),
    [
        ("The sum is 1,234.", "1234", {}, 1),
        ("1234568", "1234569", {}, 0),
        ("0.333", "1/3", {}, 0),
        ("0.333", "1/3", {"tolerance": 0.001}, 1),
        ("990", 1000, {"relative": 0.01}, 1),
        ("989", 1000, {"relative": 0.01}, 0),
        ("50%", "0.5", {}, 1),
        ("50 %", "50", {}, 1),
        ("0.5%", "50%", {}, 0),
        ("12345678901234567891", 12345678901234567890, {}, 0),
        ("first 5, then 6", "5", {"extract": r"first (\d)"}, 1),
        ("5", "5", {"extract": r"first (\d)"}, 0),
        ("no number", 3, {}, 0),
        ("7", [6, "7"], {}, 1),
        ("<think>5", 5, {}, 0),
    ],
)
def test_numbers(text: str, right: Any, settings: dict[str, Any], score: float) -> None:
    assert number(text, right, **settings) == score


def test_format_and_length() -> None:
    pattern = r"^<think>.*</think>\s*<answer>.*</answer>$"
    assert matches("<think>a\nb</think>\n<answer>c</answer>", pattern) == 1
    assert matches("<answer>c</answer>", pattern) == 0
    assert [length("w " * words, at_least=4, at_most=10) for words in (1, 2, 3, 4, 10, 15, 20, 30)] == [
        *(0, 0, 0.5, 1, 1, 0.5, 0, 0),
    ]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"age": 3}', 1),
        ('Here:\n```json\n{"age": 3}\n```\nDone.', 1),
        ('<think>{"age": "x"}</think>{"age": 3}', 1),
        ('{"age": "3"}', 0),
        ('{"age": 3', 0),
        ('{"age": NaN}', 0),
        ("[" * 100_000, 0),
        ("", 0),
    ],
)
def test_json_by_schema(text: str, score: float) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    assert json_schema(text, schema) == score


def test_numbers_beyond_floats_are_no_multiples() -> None:
    for text in ("1e400", "1" * 400):
        assert json_schema(text, {"multipleOf": 0.1}) == 0


def test_references_inside_of_a_schema_are_followed() -> None:
    inner = {"$id": "https://example.org/age", "type": "integer"}
    schema = {"$defs": {"age": inner}, "properties": {"age": {"$ref": "https://example.org/age"}}}
    spec = JSONSchema(name="json_schema", schema_=schema)
    assert [json_schema(text, spec.schema_) for text in ('{"age": 3}', '{"age": "3"}')] == [1, 0]


def test_the_last_fenced_block_of_the_language() -> None:
    text = "```python\na\n```\n```sh\nb\n```\n```py\nc\n```\n```python\nnever closed"
    assert fenced(text, "python", "py") == "c\n"
    assert fenced("no block", "python") is None


def test_rows_that_a_reward_cannot_use_are_named() -> None:
    specs = [ExactAnswer(name="exact_answer"), NumberAnswer(name="number")]
    check_rows(specs, {"answer": ["1", 2, None, ["3", "4"]]})
    with pytest.raises(
        WhetError, match=r"number cannot use column answer of row 11, 'many': no num"
    ) as error:
        check_rows(specs, {"answer": ["1", "many"]}, first=10)
    assert error.value.code == "reward.bad_column"
    with pytest.raises(WhetError, match="needs the column answer; the rows have solution") as error:
        check_rows(specs, {"solution": ["1"]})
    assert error.value.code == "reward.missing_column"
    with pytest.raises(WhetError, match="neither a text, a number, nor a list"):
        check_rows(specs[:1], {"answer": [{"value": 1}]})
