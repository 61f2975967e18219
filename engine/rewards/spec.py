"""What a recipe says about rewards: which, how heavy, how long each may take. Light: no torch.

``name`` picks a built-in verifier, ``function`` one of the user's; a bare name is one without settings.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

LABEL = r"^[A-Za-z_][A-Za-z0-9_.-]*$"


class Reward(BaseModel):
    """What all rewards share."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, serialize_by_alias=True, validate_by_name=True, allow_inf_nan=False
    )

    label: str | None = Field(
        None, pattern=LABEL, description="Its metric's name; by default the built-in's or the function's."
    )
    weight: float = Field(
        1.0, allow_inf_nan=False, description="The total is the sum of weight × score; below 0 it punishes."
    )
    seconds: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Longest for one completion, which then scores 0."
    )

    @property
    def title(self) -> str:
        """The name of its metric, unique among a run's rewards."""
        raise NotImplementedError

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the data that it cannot do without."""
        return ()


class BuiltIn(Reward):
    """A verifier of ours, by its name."""

    name: str

    @property
    def title(self) -> str:
        return self.label or self.name


class Answered(BuiltIn):
    """Compares what the completion answers with a column."""

    column: str = Field(
        "answer",
        description="Column of right answers: a text, a number, a list of which any is right, or empty "
        "where the reward does not apply.",
    )
    extract: str | None = Field(
        None,
        description="Regular expression whose first group, or whole match, is the answer; the last match "
        "counts. By default what stands in <answer>, in \\boxed{}, or after ####, else the whole text.",
    )

    @field_validator("extract")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return value if value is None else _compiling(value)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)


class ExactAnswer(Answered):
    """1 if the answer is the column's, but for case, spaces and final punctuation."""

    name: Literal["exact_answer"]
    strict: bool = Field(False, description="Compare case, spaces and punctuation too.")


class NumberAnswer(Answered):
    """1 if the answer's last number is the column's."""

    name: Literal["number"]
    tolerance: float = Field(1e-9, ge=0, allow_inf_nan=False, description="Difference still called equal.")
    relative: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="The same, as a share of the right number."
    )


class Format(BuiltIn):
    """1 if the completion matches a regular expression; ``.`` matches line ends too."""

    name: Literal["format"]
    pattern: str = Field(description="Python's syntax; anchor it with ^ and $ to mean the whole completion.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _compiling(value)


class JSONSchema(BuiltIn):
    """1 if the completion is, or holds in a fenced block, JSON that the schema accepts."""

    name: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema", description="JSON Schema; {} accepts any JSON.")

    @field_validator("schema_")
    @classmethod
    def _is_schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for

        from .references import dangling

        try:
            validator_for(value).check_schema(value)
        except SchemaError as error:
            raise ValueError(f"not a JSON Schema at {error.json_path}: {error.message}") from error
        for reference in dangling(value):
            raise ValueError(f"$ref {reference!r} leads nowhere here; other documents are not fetched")
        return value


class Length(BuiltIn):
    """1 between two lengths in words, falling to 0 at half the lower and at twice the upper."""

    name: Literal["length"]
    at_least: int = Field(0, ge=0, description="Words.")
    at_most: int | None = Field(None, ge=1, description="Words.")

    @model_validator(mode="after")
    def _says_something(self) -> Length:
        if self.at_most is None and self.at_least == 0:
            raise ValueError("length needs at_least, at_most or both")
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most={self.at_most} is below at_least={self.at_least}")
        return self


class CodeTests(BuiltIn):
    """Runs the completion's last fenced block of Python against the row's tests, confined."""

    name: Literal["code_tests"]
    column: str = Field(
        "tests",
        description="Column of tests: Python (a text or a list of texts, each one test), or a list of "
        "{input, output} for standard input and output.",
    )
    partial: bool = Field(False, description="Score the share of tests passed, not all or nothing.")
    seconds: float = Field(
        5.0, gt=0, le=600, description="Longest for one completion's tests, of the clock and of the CPU."
    )
    memory_mib: int = Field(512, ge=64, description="Address space of the program.")
    sandbox: Literal["strict", "limits"] = Field(
        "strict",
        description="strict: no network, no other process, no file outside an empty folder, or it is not "
        "run. limits: time, memory and file size alone, for machines that are themselves a sandbox.",
    )

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)


class FunctionReward(Reward):
    """A function of the user's, called once a batch in a process of its own."""

    function: str = Field(
        description="`file.py:function`, found from the current folder on, or `package.module.function`."
    )
    seconds: float = Field(60.0, gt=0, le=3600, description="Longest for a call, which is a whole batch.")
    environment: list[str] = Field(
        default_factory=list,
        description="Secret variables that it may see, e.g. [JUDGE_API_KEY]; CUDA_VISIBLE_DEVICES lets it "
        "use a GPU.",
    )

    spelling: ClassVar[re.Pattern[str]] = re.compile(
        r"(?P<file>.+\.py):(?P<in_file>[A-Za-z_]\w*)|(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)\.(?P<in_module>[A-Za-z_]\w*)"
    )

    @field_validator("function")
    @classmethod
    def _spelled(cls, value: str) -> str:
        if cls.spelling.fullmatch(value) is None:
            raise ValueError(
                f"{value!r} names no function; write file.py:function or package.module.function"
            )
        return value

    @property
    def title(self) -> str:
        return self.label or re.split(r"[.:]", self.function)[-1]

    @property
    def file(self) -> str | None:
        """The file as written, or None for a module's function."""
        match = self.spelling.fullmatch(self.function)
        return None if match is None else match["file"]


BUILT_IN: dict[str, type[BuiltIn]] = {
    "exact_answer": ExactAnswer,
    "number": NumberAnswer,
    "format": Format,
    "json_schema": JSONSchema,
    "length": Length,
    "code_tests": CodeTests,
}


def _compiling(pattern: str) -> str:
    try:
        re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


def kind_of_reward(value: Any) -> str:
    """The tag of a reward's settings: ``function``, or a built-in's name."""
    if isinstance(value, FunctionReward) or (isinstance(value, Mapping) and "function" in value):
        return "function"
    return str(value.get("name", "") if isinstance(value, Mapping) else getattr(value, "name", ""))


def _spelled_out(value: Any) -> Any:
    """A bare name as settings; refuses what is neither a built-in nor a function."""
    if isinstance(value, str):
        value = (
            {"function": value} if value not in BUILT_IN and re.search(r"[.:]", value) else {"name": value}
        )
    if isinstance(value, Mapping):
        if "function" in value and "name" in value:
            raise ValueError("name picks a built-in and function one of yours; a metric's name is label")
        kind = kind_of_reward(value)
        if kind != "function" and kind not in BUILT_IN:
            near = difflib.get_close_matches(kind, BUILT_IN, n=1)
            what = f"{kind!r} is no built-in reward" if kind else "a reward needs name or function"
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"{what}; {hint}Built in: {', '.join(BUILT_IN)}. Yours: function: file.py:name.")
    elif not isinstance(value, Reward):
        raise ValueError("a reward is a built-in's name, or settings with name or function")
    return value


def _distinct(rewards: list[Reward]) -> list[Reward]:
    twice = [title for title, count in Counter(reward.title for reward in rewards).items() if count > 1]
    if twice:
        raise ValueError(f"two rewards are called {twice[0]}; give one of them another name by label")
    if all(reward.weight == 0 for reward in rewards):
        raise ValueError("every reward has weight 0, so nothing would be learnt")
    return rewards


AnyReward = Annotated[
    Annotated[
        Annotated[ExactAnswer, Tag("exact_answer")]
        | Annotated[NumberAnswer, Tag("number")]
        | Annotated[Format, Tag("format")]
        | Annotated[JSONSchema, Tag("json_schema")]
        | Annotated[Length, Tag("length")]
        | Annotated[CodeTests, Tag("code_tests")]
        | Annotated[FunctionReward, Tag("function")],
        Discriminator(kind_of_reward),
    ],
    BeforeValidator(_spelled_out),
]
"""One entry of a recipe's ``rewards``."""

RewardList = Annotated[list[AnyReward], Field(min_length=1), AfterValidator(_distinct)]
"""The type of ``method.rewards``: at least one, each with its own metric's name."""
