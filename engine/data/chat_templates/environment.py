"""The Jinja environment that chat templates expect, with generation tags."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Noncharacters of Unicode: no text for interchange contains them, no template rewrites them.
OPEN, CLOSE = "\ufdd0", "\ufdd1"


class GenerationTag(Extension):
    """``{% generation %} ... {% endgeneration %}``: encloses its body in marks when asked to."""

    tags = {"generation"}  # noqa: RUF012  (the name and type Jinja documents)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marked = nodes.Name("_mark_generation", "load")
        call = self.call_method("_enclose", [marked])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _enclose(self, marked: object, caller: Callable[[], str]) -> str:
        return f"{OPEN}{caller()}{CLOSE}" if marked is True else caller()


def template_environment() -> ImmutableSandboxedEnvironment:
    """Jinja with what chat templates expect: the same switches, filters and globals as transformers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> str:
    raise jinja2.TemplateError(message)
