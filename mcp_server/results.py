"""What every tool returns: the facts in words, the exact next calls, and what to beware of."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, Field

from whet.engine import api

from . import errors

LONGEST_TEXT = 600
"""Characters of one string in a result; the rest is counted."""
LARGEST = 7000
"""Characters of a whole result as JSON: below 2,000 tokens, since such JSON has 3.5 or more a token."""
LONGEST_CALL = 1500
"""Characters of one call in ``next``; its longest arguments are left open until it fits."""
MARGIN = 8192
"""Characters behind a cut that are searched for secrets too: one that the cut goes through is still known."""
FEWEST = 3
"""A list that is too long for the result keeps at least so many entries."""
LONGEST_VALUE = 200
"""Characters as JSON of one value in a fix; a longer one stays here, and its finding's id goes out."""
REMEMBERED = 100
"""Characters of a string whose cleaned form is kept for the next result."""
EXACT = ("next", "fix", "changes")
"""What goes into a later call as it stands: it is cleaned, and never cut."""


class Result(BaseModel):
    """Parts that every tool's result has; a tool adds its own typed fields."""

    summary: str = Field(description="The facts in one to three sentences.")
    next: list[str] = Field(description="Exact calls that make sense now, best first.")
    warnings: list[str] = Field(default_factory=list)


class FoundOut(BaseModel):
    """A finding, as short as an agent can act on; ``fix`` goes into plan_create's ``changes`` unchanged.

    A template's text, which is a program, or a value too long to travel, is ``@ID``, which plan_create knows.
    """

    id: str
    severity: str
    title: str
    evidence: dict[str, Any] = {}
    fix: dict[str, Any] = {}
    advice: str = ""

    @classmethod
    def of(cls, finding: api.Finding) -> FoundOut:
        fix = finding.fix
        advice = "" if fix is None else f"{fix.text} {fix.command or ''}".rstrip()
        return cls(
            id=finding.id,
            severity=finding.severity,
            title=finding.title,
            evidence=finding.evidence,
            fix={} if fix is None else {key: _short(value, finding.id) for key, value in fix.patch.items()},
            advice=errors.as_calls(advice),
        )

    def warning(self) -> str:
        """One line in whet's own words: the title may hold words of the data or the model."""
        return f"{self.id}: {api.explain(self.id).title}. See findings."


def _short(value: Any, id: str) -> Any:
    text = json.dumps(value, ensure_ascii=False)
    a_program = isinstance(value, str) and "{" in value
    return f"@{id}" if a_program or len(text) > LONGEST_VALUE or api.printable(text) != text else value


def call(tool: str, **arguments: Any) -> str:
    """A call as it can be made: ``job_wait(run_id="a1")``; arguments that are None are left out.

    What is too long to be said again is ``...``.
    """
    words = {
        name: json.dumps(value, ensure_ascii=False) for name, value in arguments.items() if value is not None
    }
    while sum(map(len, words.values())) > LONGEST_CALL:
        words[max(words, key=lambda name: len(words[name]))] = "..."
    return f"{tool}({', '.join(f'{name}={word}' for name, word in words.items())})"


def published(schema: dict[str, Any]) -> dict[str, Any]:
    """What a client is told of a result: each field's name and type, nothing of what lies inside.

    Eighteen definitions share 16 kB of an agent's context; the inside of a list is plain when it is seen.
    """
    properties = {name: {"type": _type(value)} for name, value in schema["properties"].items()}
    required = [name for name in schema.get("required", []) if name in Result.model_fields]
    return {"type": "object", "properties": properties, "required": required}


def _type(schema: dict[str, Any]) -> Any:
    if "anyOf" in schema:
        return [_type(one) for one in schema["anyOf"]]
    return schema.get("type", "object")


class Cleaner:
    """Makes a result fit to leave: untrusted text shown and cut, secrets out, the whole of bounded size."""

    def __init__(self) -> None:
        self._redactor = api.Redactor(hide_paths=False)
        # Names of fields and the like come again with every result, and each takes a dozen searches.
        self._known = lru_cache(maxsize=4096)(self._shown)

    def text(self, text: str, limit: int | None = LONGEST_TEXT) -> str:
        """One string without control characters and secrets, cut to ``limit``."""
        if limit is None or len(text) <= limit + MARGIN:
            shown, left = self._known(text) if len(text) <= REMEMBERED else self._shown(text), 0
        else:
            shown, left = self._beginning(text, limit)
        if limit is None or len(shown) <= limit:
            return shown
        return f"{shown[:limit]}… [{len(shown) - limit + left} more characters]"

    def _beginning(self, text: str, limit: int) -> tuple[str, int]:
        """Enough of a long text, cleaned, and the number of characters behind it.

        To search all of it for secrets would take longer than its length: patterns overlap.
        """
        size = limit + MARGIN
        while True:
            shown = self._shown(text[:size])
            if size >= len(text) or len(shown) >= limit + MARGIN // 2:
                return shown, max(0, len(text) - size)
            size *= 2

    def _shown(self, text: str) -> str:
        return self._redactor.text(api.printable(text))

    def result(self, values: dict[str, Any], limit: int = LARGEST) -> dict[str, Any]:
        """A whole result; its longest lists are halved until it fits, and ``warnings`` says so."""
        cleaned: dict[str, Any] = self._value(values)
        cut: dict[str, int] = {}
        while len(json.dumps(cleaned, ensure_ascii=False)) > limit:
            _, name, entries = max(_lists(cleaned), key=lambda one: one[0], default=(0, "", None))
            if entries is None or len(entries) <= FEWEST:
                return self._shorter(values, limit)
            cut.setdefault(name, len(entries))
            del entries[max(FEWEST, len(entries) // 2) :]
        for name, length in cut.items():
            kept = next(len(entries) for _, known, entries in _lists(cleaned) if known == name)
            cleaned["warnings"].append(f"{name}: {kept} of {length} shown; narrow the call for the rest.")
        return cleaned

    def _shorter(self, values: dict[str, Any], limit: int) -> dict[str, Any]:
        """No list is left to halve: the texts are."""
        texts = LONGEST_TEXT
        cleaned = self._value(values)
        while len(json.dumps(cleaned, ensure_ascii=False)) > limit and texts > 20:
            texts //= 2
            cleaned = self._value(values, texts)
            for _, _, entries in _lists(cleaned):
                del entries[FEWEST:]
        _emptied(cleaned, limit)
        cleaned["warnings"].append("Long texts and lists were cut to fit; narrow the call for the rest.")
        return cleaned

    def _value(self, value: Any, texts: int | None = LONGEST_TEXT) -> Any:
        if isinstance(value, str):
            return self.text(value, texts)
        if isinstance(value, list):
            return [self._value(one, texts) for one in value]
        if isinstance(value, dict):
            return {
                self.text(str(key), texts): self._value(one, None if key in EXACT else texts)
                for key, one in value.items()
            }
        return value


def _emptied(cleaned: dict[str, Any], limit: int) -> None:
    """Names and nesting alone are too much: the largest fields lose their content and keep their type."""
    sizes = {
        name: len(json.dumps(value, ensure_ascii=False))
        for name, value in cleaned.items()
        if name not in Result.model_fields and isinstance(value, str | list | dict)
    }
    for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
        if len(json.dumps(cleaned, ensure_ascii=False)) <= limit:
            return
        cleaned[name] = type(cleaned[name])()


def _lists(value: Any, name: str = "") -> list[tuple[int, str, list[Any]]]:
    """All lists inside of a result that may be cut: size as JSON, name, the list itself."""
    found = []
    if isinstance(value, dict):
        for key, one in value.items():
            if key not in (*EXACT, "warnings"):
                found += _lists(one, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        found.append((len(json.dumps(value, ensure_ascii=False)), name, value))
        for one in value:
            found += _lists(one, f"{name}[]")
    return found
