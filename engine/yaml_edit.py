"""Set one key of a YAML text and leave the rest as it was written, comments included. Light."""

from __future__ import annotations

from typing import Any

import yaml

from .errors import WhetError

WIDTH = 110


def set_key(text: str, key: str, value: Any) -> str:
    """``text`` with dotted ``key`` set to ``value``.

    The key's own line changes, or one is added at the end of its section; other lines keep their comments,
    order and quoting. A section in braces is written anew as one. Where the text allows no such edit (an
    anchor, a document in braces), all of it is written anew, without comments.

    Args:
        text: a YAML mapping.
        key: ``section.name``, or ``name``.
        value: anything YAML can say.

    Raises:
        WhetError: ``recipe.override`` for a key inside of what is no section.
    """
    wanted = _with(yaml.safe_load(text) or {}, key.split("."), value)
    edited = _edit(text, key.split("."), value, wanted)
    if edited is not None and _loads_as(edited, wanted):
        return edited
    return yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True, width=WIDTH)


def _edit(text: str, path: list[str], value: Any, wanted: dict[str, Any]) -> str | None:
    """The text with that one key changed; None where it is not plain block style.

    ``wanted`` is what the section that is looked at is to hold.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        return text + _block(path, value, 0)
    while isinstance(node, yaml.MappingNode) and not node.flow_style:
        pairs = {key.value: (key, inner) for key, inner in node.value}
        if path[0] not in pairs:
            return _insert(text, node, path, value)
        key_node, inner = pairs[path[0]]
        if len(path) == 1 or not isinstance(inner, yaml.MappingNode):
            return _replace(text, key_node, inner, path, value)
        wanted = wanted[path[0]]
        if inner.flow_style:
            return _replace(text, key_node, inner, path[:1], wanted)
        node, path = inner, path[1:]
    return None


def _replace(text: str, key: yaml.Node, old: yaml.Node, path: list[str], value: Any) -> str:
    """The key's own text gives way; what follows the value on its line stays (a comment)."""
    start, end = key.start_mark.index, old.end_mark.index
    if isinstance(old, yaml.CollectionNode) and not old.flow_style:
        # a block ends where the next key begins: keep the comments and empty lines before that
        end = start + len(text[start:end].rstrip())
        end = _last_content(text, old, end)
    made = _block(path, value, key.start_mark.column).lstrip().rstrip("\n")
    return text[:start] + made + text[end:]


def _insert(text: str, node: yaml.MappingNode, path: list[str], value: Any) -> str:
    """Behind the last entry of the section."""
    column = node.value[0][0].start_mark.column if node.value else 0
    end = _last_content(text, node, node.end_mark.index)
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    return text[:line_end] + "\n" + _block(path, value, column).rstrip("\n") + text[line_end:]


def _last_content(text: str, node: yaml.Node, end: int) -> int:
    """Where the last scalar inside ``node`` ends; comments behind it belong to what follows."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return len(text[: node.end_mark.index].rstrip())
    return min(end, node.end_mark.index)


def _block(path: list[str], value: Any, column: int) -> str:
    nested: Any = value
    for name in reversed(path):
        nested = {name: nested}
    flat = isinstance(value, list | dict)
    dumped = yaml.safe_dump(
        nested, sort_keys=False, allow_unicode=True, width=WIDTH, default_flow_style=None if flat else False
    )
    return "".join(f"{' ' * column}{line}\n" for line in dumped.splitlines())


def _with(values: Any, path: list[str], value: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise WhetError(
            "recipe.override",
            f"{'.'.join(path)} cannot be set inside of {str(values)[:60]!r}.",
            "Set what holds it as a whole.",
        )
    if len(path) == 1:
        return {**values, path[0]: value}
    return {**values, path[0]: _with(values.get(path[0]) or {}, path[1:], value)}


def _loads_as(text: str, wanted: Any) -> bool:
    try:
        return bool(yaml.safe_load(text) == wanted)
    except yaml.YAMLError:
        return False
