"""From a built-in reward's settings to its verifier, and to what its column must hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ...errors import WhetError
from ..functions import missing_column
from ..sandbox.programs import MEGABYTE, Limits
from ..sandbox.programs import check as check_sandbox
from ..scores import SHOWN
from ..spec import BuiltIn, CodeTests, ExactAnswer, Format, JSONSchema, Length, NumberAnswer, Reward
from .answers import exact_answer, right_answers
from .code import code_tests, right_tests
from .numbers import number, right_numbers
from .shape import json_schema, length, matches

RIGHT: dict[type[Reward], Callable[[Any], object]] = {
    ExactAnswer: right_answers,
    NumberAnswer: right_numbers,
    CodeTests: right_tests,
}
"""Reward -> what reads its column, raising ValueError where it cannot."""


def verify(spec: BuiltIn, text: str, right: Any) -> float | None:
    """The score of one completion; None where the column is empty, so that the reward does not apply.

    Raises ValueError where the column holds what the reward cannot use.
    """
    if spec.columns and right is None:
        return None
    match spec:
        case ExactAnswer():
            return exact_answer(text, right, extract=spec.extract, strict=spec.strict)
        case NumberAnswer():
            return number(text, right, extract=spec.extract, tolerance=spec.tolerance, relative=spec.relative)
        case Format():
            return matches(text, spec.pattern)
        case JSONSchema():
            return json_schema(text, spec.schema_)
        case Length():
            return length(text, spec.at_least, spec.at_most)
        case CodeTests():
            return code_tests(text, right, partial=spec.partial, limits=limits_of(spec))
    raise TypeError(f"{type(spec).__name__} has no verifier")


def limits_of(spec: CodeTests) -> Limits:
    return Limits(spec.seconds, spec.memory_mib * MEGABYTE, spec.sandbox)


def check_programs(specs: Sequence[Reward]) -> None:
    """See that programs of the model can be confined as asked. Raises WhetError ``reward.no_sandbox``."""
    for spec in specs:
        if isinstance(spec, CodeTests):
            _confinable(limits_of(spec))


@lru_cache(maxsize=16)
def _confinable(limits: Limits) -> None:
    check_sandbox(limits)


def unusable(specs: Sequence[Reward], row: Mapping[str, Any]) -> str | None:
    """Why a built-in reward cannot judge answers to this row; None where all can."""
    for spec in specs:
        for column in spec.columns:
            value = row.get(column)
            try:
                _ = None if value is None else RIGHT[type(spec)](value)
            except ValueError as error:
                return f"column {column!r}, which the reward {spec.title} reads, is {error}"
    return None


def check_rows(specs: Sequence[Reward], columns: Mapping[str, Sequence[Any]], first: int = 0) -> None:
    """See that the built-in rewards can use the data: each column is there and each of its values readable.

    ``first`` is the number of the first row. Raises WhetError ``reward.missing_column`` or
    ``reward.bad_column`` with the row and its value.
    """
    for spec in specs:
        for column in spec.columns:
            if column not in columns:
                raise missing_column(spec.title, column, list(columns))
            read = RIGHT[type(spec)]
            for row, value in enumerate(columns[column], first):
                try:
                    _ = None if value is None else read(value)
                except ValueError as error:
                    raise bad_column(spec, column, row, value, error) from error


def bad_column(spec: Reward, column: str, row: int, value: Any, error: Exception) -> WhetError:
    """The error for a row whose right answer the reward cannot use."""
    shown = repr(value)
    shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "..."
    return WhetError(
        "reward.bad_column",
        f"Reward {spec.title} cannot use column {column} of row {row}, {shown}: {error}.",
        "Correct the row, or leave the column empty there so that the reward does not apply.",
    )
