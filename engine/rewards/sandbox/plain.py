"""Comparisons with plain values, made to mean what they say: a result that claims to equal anything does not.

`assert f(1) == 2` asks the result whether it equals 2, and the program that is judged may have written that
answer. So a test's comparisons with literals first see that no such method decides them.
"""

from __future__ import annotations

import ast
import os
import sys
from types import FunctionType
from typing import Any

NAME = "__plain__"
"""What hardened tests call; the harness puts :func:`plain` there."""
DECIDES = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__")
TRUSTED = tuple(os.path.join(prefix, "") for prefix in (sys.prefix, sys.base_prefix))
ITEMS: dict[type, Any] = {
    list: list.__iter__,
    tuple: tuple.__iter__,
    set: set.__iter__,
    frozenset: frozenset.__iter__,
    dict: lambda value: (one for pair in dict.items(value) for one in pair),
}
"""Ways into containers that a subclass cannot change."""


def hardened(test: str) -> str:
    """The same test, whose comparisons with literals pass the other side through :func:`plain`.

    Raises SyntaxError.
    """
    return ast.unparse(ast.fix_missing_locations(_Hardened().visit(ast.parse(test))))


class _Hardened(ast.NodeTransformer):
    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        sides = [node.left, *node.comparators]
        if any(map(_literal, sides)) and not any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            node.left, *node.comparators = [side if _literal(side) else _through(side) for side in sides]
        return node


def _literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _through(node: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(NAME, ast.Load()), [node], [])


def plain(value: Any) -> Any:
    """The value, unless code outside of Python's own and installed files decides what it equals.

    Raises AssertionError.
    """
    kind = type(value)
    for name in DECIDES:
        method = getattr(kind, name, None)
        if isinstance(method, FunctionType) and not method.__code__.co_filename.startswith(TRUSTED):
            raise AssertionError(f"{kind.__name__} decides itself what it equals")
    for base, items in ITEMS.items():
        if isinstance(value, base):
            for one in items(value):
                plain(one)
    return value
