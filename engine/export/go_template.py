"""Just enough of Go's text/template to render what :mod:`modelfile` and people write. Light.

Known: text, ``.Name``, ``$.Name``, ``$name.Name``, string literals, ``if / else if / else / end``,
``range .Messages``, ``range $i, $m := .Messages``, comments, the dashes that trim whitespace, and the
functions ``eq``, ``ne``, ``lt``, ``le``, ``gt``, ``ge``, ``and``, ``or``, ``not``, ``len``, ``slice``.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
TRIM_BEFORE, TRIM_AFTER = re.compile(r"\s*\{\{-\s"), re.compile(r"\s-\}\}\s*")
WORD = re.compile(r'\(|\)|"(?:[^"\\]|\\.)*"|[^\s()]+')
RANGE = re.compile(r"range\s+(?:(?:\$(\w+),\s*)?\$(\w+)\s*:=\s*)?(\S+)")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda first, *others: any(first == other for other in others),
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "not": operator.not_,
    "len": len,
    "slice": lambda value, *ends: value[slice(*ends) if len(ends) == 2 else slice(ends[0], None)],
}


class GoTemplateError(ValueError):
    """The text is outside the subset."""


Node = str | list[Any]


def render(template: str, data: Mapping[str, Any]) -> str:
    """``template`` with ``data`` as dot. Raises :class:`GoTemplateError` for what the subset does not
    know."""
    pieces = ACTION.split(TRIM_AFTER.sub(" }}", TRIM_BEFORE.sub("{{ ", template)))
    # Even places are text, odd ones actions.
    tokens = [(at % 2 == 1, piece.strip() if at % 2 else piece) for at, piece in enumerate(pieces)]
    try:
        out, rest = _block(tokens, 0, data, {"": data}, live=True)
    except GoTemplateError:
        raise
    # A broken string, a function of other values: Go would say so too.
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise GoTemplateError(f"{type(error).__name__}: {error}") from error
    if rest != len(tokens):
        raise GoTemplateError(f"unexpected {tokens[rest][1]!r}")
    return out


Tokens = Sequence[tuple[bool, str]]
Scope = Mapping[str, Any]


def _block(tokens: Tokens, at: int, dot: Any, scope: Scope, live: bool) -> tuple[str, int]:
    """Render until an ``else`` or ``end`` that belongs to an outer action; returns the text and its place."""
    out: list[str] = []
    while at < len(tokens):
        is_action, text = tokens[at]
        if not is_action:
            out.append(text if live else "")
            at += 1
        elif text == "end" or text.startswith("else"):
            break
        elif text.startswith("/*") and text.endswith("*/"):
            at += 1
        elif text.startswith("if "):
            piece, at = _if(tokens, at, dot, scope, live)
            out.append(piece)
        elif text.startswith("range "):
            piece, at = _range(tokens, at, dot, scope, live)
            out.append(piece)
        else:
            out.append(str(_value(text, dot, scope)) if live else "")
            at += 1
    return "".join(out), at


def _if(tokens: Tokens, at: int, dot: Any, scope: Scope, live: bool) -> tuple[str, int]:
    out, done, condition = "", False, tokens[at][1][3:]
    while True:
        holds = live and not done and (condition == "" or bool(_value(condition, dot, scope)))
        piece, at = _block(tokens, at + 1, dot, scope, holds)
        out += piece
        done = done or holds
        word = tokens[at][1] if at < len(tokens) else ""
        if word == "end":
            return out, at + 1
        if word == "else":
            condition = ""
        elif word.startswith("else if "):
            condition = word[8:]
        else:
            raise GoTemplateError("if without end")


def _range(tokens: Tokens, at: int, dot: Any, scope: Scope, live: bool) -> tuple[str, int]:
    match = RANGE.fullmatch(tokens[at][1])
    if match is None:
        raise GoTemplateError(f"unknown range {tokens[at][1]!r}")
    index, item, source = match.groups()  # without names only the dot moves
    values = _value(source, dot, scope) if live else []
    _, end = _block(tokens, at + 1, dot, scope, live=False)
    out = ""
    for number, value in enumerate(values):
        names = {name: one for name, one in ((index, number), (item, value)) if name}
        out += _block(tokens, at + 1, value, {**scope, **names}, live)[0]
    if end >= len(tokens) or tokens[end][1] != "end":
        raise GoTemplateError("range without end")
    return out, end + 1


def _value(expression: str, dot: Any, scope: Scope) -> Any:
    words = WORD.findall(expression)
    value, rest = _call(words, 0, dot, scope)
    if rest != len(words):
        raise GoTemplateError(f"cannot read {expression!r}")
    return value


def _call(words: Sequence[str], at: int, dot: Any, scope: Scope) -> tuple[Any, int]:
    """A function with its arguments, or one operand."""
    name = words[at] if at < len(words) else ""
    if name not in FUNCTIONS:
        return _operand(words, at, dot, scope)
    arguments: list[Any] = []
    at += 1
    while at < len(words) and words[at] != ")":
        value, at = _operand(words, at, dot, scope)
        arguments.append(value)
    try:
        return FUNCTIONS[name](*arguments), at
    except TypeError as error:
        raise GoTemplateError(f"{name}: {error}") from error


def _operand(words: Sequence[str], at: int, dot: Any, scope: Scope) -> tuple[Any, int]:
    if at >= len(words):
        raise GoTemplateError("empty expression")
    word = words[at]
    if word == "(":
        value, at = _call(words, at + 1, dot, scope)
        if at >= len(words) or words[at] != ")":
            raise GoTemplateError("missing )")
        return value, at + 1
    if word.startswith('"'):
        return json.loads(word), at + 1
    if word.isdigit():
        return int(word), at + 1
    match = re.fullmatch(r"(?:\$(\w*))?(?:\.(\w+))?", word)
    if match is None or word == "":
        raise GoTemplateError(f"unknown word {word!r}")
    variable, field = match.groups()
    if variable is not None and variable not in scope:
        raise GoTemplateError(f"unknown variable {word!r}")
    holder = scope[variable] if variable is not None else dot
    return (holder.get(field, "") if field else holder), at + 1
