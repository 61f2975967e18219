"""What a completion looks like, whatever it says: format, JSON, length."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from .answers import said_in

FENCED = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)```", re.DOTALL)


def matches(text: str, pattern: str) -> float:
    """1 if the pattern is found in the text, ``.`` matching line ends too; else 0."""
    return float(re.search(pattern, text, re.DOTALL) is not None)


def fenced(text: str, *languages: str) -> str | None:
    """The last fenced block of one of the languages, or of none named; None without one."""
    blocks = [body for language, body in FENCED.findall(text) if language.lower() in ("", *languages)]
    return blocks[-1] if blocks else None


def json_value(text: str) -> Any:
    """The JSON that a completion is, or holds in its last fenced block.

    Thoughts do not count. Raises ValueError where there is none; NaN and Infinity
    are none.
    """
    said = said_in(text)
    block = fenced(said, "json")
    try:
        return json.loads(said if block is None else block, parse_constant=_no_json)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _no_json(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def json_schema(text: str, schema: dict[str, Any]) -> float:
    """1 if the schema accepts the text's JSON; else 0. References to other documents are not fetched."""
    try:
        value = json_value(text)
    except ValueError:
        return 0.0
    try:
        return float(_validator(json.dumps(schema, sort_keys=True)).is_valid(value))
    except (RecursionError, OverflowError):  # nested too deep; 1e400, or hundreds of digits, with multipleOf
        return 0.0


@lru_cache(maxsize=32)
def _validator(schema: str) -> Any:
    from jsonschema.validators import validator_for
    from referencing import Registry

    loaded = json.loads(schema)
    return validator_for(loaded)(loaded, registry=Registry())


def length(text: str, at_least: int = 0, at_most: int | None = None) -> float:
    """1 from ``at_least`` to ``at_most`` words, falling to 0 at half the one and twice the other."""
    words = len(text.split())
    if words < at_least:
        return max(0.0, 2 * words / at_least - 1)
    if at_most is not None and words > at_most:
        return max(0.0, 2 - words / at_most)
    return 1.0
