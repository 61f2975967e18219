"""What a recipe may say about rewards, and what it is told when it says something else."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from whet.engine.rewards.spec import FunctionReward, NumberAnswer, RewardList


class Section(BaseModel):
    rewards: RewardList


def read(*rewards: Any) -> Section:
    return Section.model_validate({"rewards": list(rewards)})


def test_every_way_of_writing_a_reward() -> None:
    section = read(
        "exact_answer",
        {"name": "number", "weight": 0.5, "tolerance": 1e-6},
        {"name": "format", "pattern": r"^<think>.*</think>\s*<answer>.*</answer>$"},
        {"name": "json_schema", "schema": {"type": "object"}},
        {"name": "length", "at_most": 100, "weight": -0.1},
        {"name": "code_tests", "partial": True},
        {"function": "rewards.py:check_answer", "weight": 2},
        "package.module.other",
    )
    assert [reward.title for reward in section.rewards] == [
        *("exact_answer", "number", "format", "json_schema", "length", "code_tests", "check_answer", "other"),
    ]
    assert [reward.columns for reward in section.rewards] == [
        *(("answer",), ("answer",), (), (), (), ("tests",), (), ()),
    ]
    assert isinstance(section.rewards[1], NumberAnswer) and section.rewards[1].tolerance == 1e-6
    assert isinstance(section.rewards[6], FunctionReward) and section.rewards[6].file == "rewards.py"
    assert isinstance(section.rewards[7], FunctionReward) and section.rewards[7].file is None


def test_what_was_set_survives_a_file() -> None:
    section = read(
        "exact_answer", {"name": "json_schema", "schema": {}}, {"function": "r.py:f", "label": "g"}
    )
    written = section.model_dump(mode="json", exclude_unset=True)
    assert written == {
        "rewards": [
            {"name": "exact_answer"},
            {"name": "json_schema", "schema": {}},
            {"function": "r.py:f", "label": "g"},
        ]
    }
    assert Section.model_validate(written) == section


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ([], "at least 1 item"),
        (["exact_anser"], "did you mean exact_answer"),
        (["correctness"], "Built in: exact_answer, number"),
        ([{"weight": 1.0}], "needs name or function"),
        ([3], "a built-in's name, or settings"),
        ([{"function": "r.py:f", "name": "mine"}], "a metric's name is label"),
        ([{"function": "f"}], "file.py:function or package.module.function"),
        ([{"function": "r.py:1f"}], "names no function"),
        (["number", "number"], "two rewards are called number"),
        ([{"name": "number", "weight": 0}], "every reward has weight 0"),
        ([{"name": "number", "weight": float("nan")}], "finite"),
        ([{"name": "number", "seconds": 0}], "greater than 0"),
        ([{"name": "number", "tol": 1}], "Extra inputs"),
        ([{"name": "format"}], "required"),
        ([{"name": "format", "pattern": "(<think>"}], "no regular expression: missing )"),
        ([{"name": "exact_answer", "extract": "["}], "no regular expression"),
        ([{"name": "json_schema", "schema": {"type": "text"}}], r"not a JSON Schema at $.type"),
        (
            [{"name": "json_schema", "schema": {"items": {"$ref": "#/$defs/a"}}}],
            "'#/$defs/a' leads nowhere",
        ),
        ([{"name": "json_schema", "schema": {"$ref": "https://example.org/a"}}], "leads nowhere"),
        ([{"name": "length"}], "at_least, at_most or both"),
        ([{"name": "length", "at_least": 9, "at_most": 3}], "at_most=3 is below at_least=9"),
        ([{"name": "number", "label": "two words"}], "pattern"),
        ([{"name": "code_tests", "sandbox": "none"}], "strict"),
    ],
)
def test_what_is_wrong_is_said(rewards: list[Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        read(*rewards)
    assert said in str(error.value)
