"""Whatever a tool returns, what leaves is small, free of control characters, and says what is missing."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from whet.engine.api import Finding, Fix
from whet.mcp_server.results import LARGEST, Cleaner, FoundOut, Result, call, published

CHARACTERS = 'abc XYZ"\\{}[]<>&\n\t\r\0\x1b\x7f\x9b\u202e\u2028\ufeffäß語🙂'
SLACK = 500
"""Characters of the warnings that say what was cut."""


def a_text(chance: random.Random) -> str:
    return "".join(chance.choices(CHARACTERS, k=chance.choice((0, 1, 10, 100, 1000, 5000))))


def a_value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.choice(
        ("text", "number", "none", "list", "dict", "list", "dict") if depth < 3 else ("text", "number")
    )
    if kind == "text":
        return a_text(chance)
    if kind == "number":
        return chance.choice((0, -1.5, 1e300, 10**15, True))
    if kind == "none":
        return None
    size = chance.choice((0, 1, 3, 10, 30))
    if kind == "list":
        return [a_value(chance, depth + 1) for _ in range(size)]
    return {f"{name}{a_text(chance)[:20]}": a_value(chance, depth + 1) for name in range(min(size, 10))}


def a_result(seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    fields = {f"field{number}": a_value(chance) for number in range(chance.randint(1, 6))}
    return {"summary": a_text(chance), "next": [call("job_list")], "warnings": [], **fields}


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [*map(str, value), *(text for inner in value.values() for text in strings(inner))]
    return [text for inner in value for text in strings(inner)] if isinstance(value, list) else []


@pytest.mark.parametrize("seed", range(60))
def test_a_result_is_bounded_whatever_is_in_it(seed: int) -> None:
    whole = a_result(seed)
    before = json.dumps(whole, ensure_ascii=False)
    cleaned = Cleaner().result(whole)
    size = len(json.dumps(cleaned, ensure_ascii=False))
    assert size <= LARGEST + SLACK
    assert json.dumps(whole, ensure_ascii=False) == before
    assert {name: type(value) for name, value in cleaned.items()} == {
        name: type(value) for name, value in whole.items()
    }
    if size < len(before) / 2 and len(before) > 3 * LARGEST:
        assert cleaned["warnings"] or "more characters" in json.dumps(cleaned)
    for text in strings(cleaned):
        obeyed = [char for char in text if ord(char) < 32 or 127 <= ord(char) < 160 or char == "\u202e"]
        assert set(obeyed) <= {"\n", "\t"}


def test_a_small_result_is_left_as_it_is() -> None:
    whole = {
        "summary": "Two rows.",
        "next": [call("job_list")],
        "warnings": [],
        "rows": [{"a": 1.5}, {"a": None}],
    }
    assert Cleaner().result(whole) == whole


def test_the_longest_list_is_cut_and_the_cut_is_counted() -> None:
    rows = [{"at": f"rows.jsonl:{number}", "reason": "empty"} for number in range(1000)]
    cleaned = Cleaner().result({"summary": "", "next": [], "warnings": [], "bad": rows, "few": [1, 2]})
    assert cleaned["bad"] == rows[: len(cleaned["bad"])] and cleaned["few"] == [1, 2]
    assert cleaned["warnings"] == [f"bad: {len(cleaned['bad'])} of 1000 shown; narrow the call for the rest."]


def test_a_fix_is_never_cut_though_its_value_may_stay_here() -> None:
    patch = {"model.max_length": 4096, "data.template": "{{ messages }}" * 100}
    fix = Fix(text="Take it.", patch=patch)
    found = FoundOut.of(Finding(id="D16", severity="error", title="", evidence={}, fix=fix))
    assert found.fix == {"model.max_length": 4096, "data.template": "@D16"}


def test_a_call_can_be_made_as_it_is_written() -> None:
    assert call("job_wait", run_id="a1", since=None) == 'job_wait(run_id="a1")'
    assert call("plan_create", changes={"a.b": [True, None]}) == 'plan_create(changes={"a.b": [true, null]})'


def test_a_call_too_long_to_be_said_again_leaves_its_longest_argument_open() -> None:
    said = call("plan_create", data="demo", changes={str(number): number for number in range(10_000)})
    assert said == 'plan_create(data="demo", changes=...)'


@pytest.mark.parametrize(
    "piece", ["x", "a-", "--", "token-", "eyJ-", "basic ", "-----BEGIN PRIVATE KEY-----"]
)
def test_long_texts_are_cleaned_quickly(piece: str) -> None:
    """Searched as a whole, some of these would keep the server busy for minutes."""
    text, began = piece * (250_000 // len(piece)), time.process_time()
    shown = Cleaner().text(text, 300)
    assert time.process_time() - began < 1 and shown.endswith(f"[{len(text) - 300} more characters]")


@pytest.mark.parametrize("secrets", [1, 400])
def test_a_secret_that_the_cut_goes_through_is_known(secrets: int) -> None:
    key = f"-----BEGIN PRIVATE KEY-----\n{'MIIEvg' * 300}\n-----END PRIVATE KEY-----\n"
    shown = Cleaner().text("x" * 290 + " " + key * secrets + "end " * 5000, 300)
    assert shown.startswith("x" * 290) and "MII" not in shown


def test_the_published_schema_names_fields_alone() -> None:
    class Nested(Result):
        rows: list[dict[str, Any]]
        left: int | None = None

    schema = published(Nested.model_json_schema())
    assert schema["properties"]["rows"] == {"type": "array"}
    assert schema["properties"]["left"] == {"type": ["integer", "null"]}
    assert schema["required"] == ["summary", "next"]
