"""The Jinja environment that chat templates expect, with generation tags, and with bounds."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from .bounds import WIDTH, Meter, Overrun

# Noncharacters of Unicode: no text for interchange contains them, no template rewrites them.
OPEN, CLOSE = "\ufdd0", "\ufdd1"
UNBOUNDED = ("translate", "maketrans", "to_bytes")
"""Methods of texts and numbers that write as much as they are told to; no chat template needs them."""


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


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end: what a rendering does is told to its :class:`.bounds.Meter`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **settings: Any) -> None:
        self.meter = Meter()
        self.concat = self.meter.join  # type: ignore[assignment]  # of the same signature
        # What a template's own code calls, see _Metered; these very objects, so that they are told at once.
        self.turn, self.built, self.joined = _turn, self.meter.size, self._joined
        super().__init__(finalize=self.meter.size, **settings)  # before a value is printed
        self.filters = {name: self._metered(name, filter) for name, filter in self.filters.items()}
        del self.globals["lipsum"]  # as many words as it is told to write

    def _generate(self, source: nodes.Template, *rest: Any, **settings: Any) -> str:
        return super()._generate(_Metered().visit(source), *rest, **settings)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = __self.meter
        meter.tick()
        if __obj is _turn:
            return ""
        if __obj is __self.built or __obj is __self.joined:
            return __obj(*args)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | bytes):
            meter.method(owner, __obj.__name__, args)
        for one in (*args, *kwargs.values()):
            meter.size(one)
        return meter.size(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.meter.operation(operator, left, right)
        return self.meter.size(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in UNBOUNDED and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``"...".format``, whose widths and result are bounded."""
        if super().wrap_str_format(value) is None:
            return None
        text, mapping = str(value.__self__), value.__name__ == "format_map"

        def format(*args: Any, **kwargs: Any) -> str:
            given = ((), args[0]) if mapping else (args, kwargs)
            return _Formatter(self).vformat(text, *given)

        return format

    def _joined(self, *parts: Any) -> str:
        return self.meter.join([str(self.meter.size(part)) for part in parts])

    def _metered(self, name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
        """The filter; Jinja finds what it wants passed first in attributes, which :func:`wraps` keeps."""
        before = 1 if hasattr(filter, "jinja_pass_arg") else 0

        @functools.wraps(filter)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.meter.tick()
            self.meter.filtered(name, args[before], (*args[before + 1 :], *kwargs.values()))
            result = filter(*args, **kwargs)
            if isinstance(result, str):
                self.meter.text(len(result))
            return self.meter.size(result)

        return metered


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        if WIDTH.search(format_spec):
            raise Overrun(f"it formats with the width {format_spec[:60]!r}")
        result = super().format_field(value, format_spec)
        meter = self._env.meter  # type: ignore[attr-defined]  # made by BoundedEnvironment alone
        meter.text(len(result))
        return result


class _Metered(NodeTransformer):
    """Makes a template's own code say what it does."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_called("turn", [])))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _called("joined", node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._built(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._built(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._built(node) if node.ctx == "load" else node

    def _built(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        plain = all(isinstance(item, nodes.Const) for item in node.items)
        return node if plain else _called("built", [node])


def _turn() -> str:
    """What the body of each loop begins with: a call, which is counted."""
    return ""


def _called(method: str, arguments: Sequence[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)


def template_environment() -> BoundedEnvironment:
    """Jinja with what chat templates expect: the same switches, filters and globals as transformers."""
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = environment._metered("tojson", _tojson)
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
