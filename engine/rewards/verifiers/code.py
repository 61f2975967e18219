"""Whether the program that a completion holds passes the row's tests."""

from __future__ import annotations

import ast
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..sandbox.plain import hardened
from ..sandbox.programs import Limits, run_program, run_tests
from .answers import said_in
from .shape import fenced

LANGUAGES = ("python", "py", "python3")


class Case(NamedTuple):
    """Standard input, and what the program must print for it."""

    given: str
    expected: str


def right_tests(value: Any) -> list[str] | list[Case]:
    """A column's tests: Python of which each text is one (a text of asserts alone, one for each), or cases.

    Cases are a list of ``{input, output}``, or one ``{inputs: [...], outputs: [...]}``. Raises ValueError for
    anything else, for none, and for tests that are not Python.
    """
    if isinstance(value, str):
        return _asserts(value)
    if isinstance(value, Mapping) and len(value.get("inputs") or ()) == len(value.get("outputs") or (None,)):
        value = [
            {"input": given, "output": expected}
            for given, expected in zip(value["inputs"], value["outputs"], strict=True)
        ]
    if isinstance(value, Sequence) and value:
        if all(isinstance(one, str) for one in value):
            return [test for text in value for test in _asserts(text)]
        if all(isinstance(one, Mapping) and {"input", "output"} <= set(one) for one in value):
            return [Case(str(one["input"]), str(one["output"])) for one in value]
    raise ValueError("neither Python tests nor a list of {input, output}")


def _asserts(text: str) -> list[str]:
    try:
        text = hardened(text)
        statements = ast.parse(text).body
    except SyntaxError as error:
        raise ValueError(f"not Python: {error.msg} in line {error.lineno}") from error
    if not statements:
        raise ValueError("empty, so every program would pass")
    if all(isinstance(one, ast.Assert) for one in statements):
        return [ast.unparse(one) for one in statements]
    return [text]


def code_tests(text: str, tests: Any, *, partial: bool = False, limits: Limits | None = None) -> float:
    """1 if the text's last fenced Python block passes all tests, else 0; with ``partial`` the share passed.

    ``limits.seconds`` are for all of the completion's tests. Raises ValueError where the tests are none, and
    WhetError ``reward.no_sandbox``.
    """
    limits = limits or Limits()
    right = right_tests(tests)
    source = fenced(said_in(text), *LANGUAGES)
    if source is None:
        return 0.0
    cases = [one for one in right if isinstance(one, Case)]
    asserts = [one for one in right if isinstance(one, str)]
    passed = _cases(source, cases, limits, partial) if cases else run_tests(source, asserts, limits).passed
    return sum(passed) / len(right) if partial else float(sum(passed) == len(right))


def _cases(source: str, cases: list[Case], limits: Limits, partial: bool) -> list[bool]:
    """A run for each case; ends at the first failure unless the share counts, and when time is up."""
    end = time.monotonic() + limits.seconds
    passed: list[bool] = []
    for case in cases:
        left = end - time.monotonic()
        if left <= 0 or not (partial or all(passed)):
            break
        outcome = run_program(source, case.given, replace(limits, seconds=left))
        passed.append(outcome.ended == "ok" and _lines(outcome.output) == _lines(case.expected))
    return passed


def _lines(text: str) -> list[str]:
    """Without spaces at lines' ends and empty lines at the text's."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
