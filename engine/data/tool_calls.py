"""Tool calls and tool definitions under any usual spelling, as chat templates read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .rows import RowError

Call = dict[str, Any]


def canonical_calls(value: object, place: str) -> list[Call]:
    """``{"type": "function", "function": {"name", "arguments"}}`` each, arguments as an object where they are
    one.

    Args:
        value: a call, a list of calls, or either as JSON; a call may lack the ``function`` around it.
        place: for the error's text.

    Raises:
        RowError: something else.
    """
    value = _parsed(value)
    calls = value if isinstance(value, list) else [value]
    return [_call(_parsed(call), place) for call in calls]


def _call(call: object, place: str) -> Call:
    if not isinstance(call, Mapping):
        raise RowError(f"{place} has a tool call that is {type(call).__name__}, expected an object")
    function = call.get("function")
    function = call if not isinstance(function, Mapping) else function
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RowError(f"{place} has a tool call without a name (fields: {', '.join(map(str, function))})")
    given = function.get("arguments")
    given = function.get("parameters") if given is None else given  # of the two one may be a null column
    arguments = _parsed(given) if isinstance(_parsed(given), Mapping) else given
    kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    said = {} if arguments is None else arguments
    if not isinstance(said, str | Mapping):
        raise RowError(f"{place} calls {name} with {type(said).__name__}, expected an object or its JSON")
    return {**kept, "type": "function", "function": {"name": name, "arguments": without_nulls(said)}}


def canonical_tools(value: object) -> list[Any] | None:
    """Definitions in the form ``{"type": "function", "function": {...}}``; None for none.

    Raises:
        RowError: no list, nor JSON of one.
    """
    if value is None or value == "":
        return None
    tools = _parsed(value)
    if not isinstance(tools, list):
        raise RowError(f"field 'tools' is {type(value).__name__}, expected a list, or its JSON")
    return [_tool(_parsed(tool)) for tool in tools] or None


def _tool(tool: Any) -> Any:
    bare = isinstance(tool, Mapping) and "function" not in tool and "name" in tool
    inner = {key: value for key, value in tool.items() if key != "type"} if bare else None
    return without_nulls(tool if inner is None else {"type": "function", "function": inner})


def without_nulls(value: Any) -> Any:
    """Without the fields, however deep, that are null: where a column holds structs (Parquet, the hub), each
    row has the fields of all."""
    if isinstance(value, Mapping):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def with_json(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with the arguments of their calls as JSON, which some templates print as they are."""
    return [
        {**message, "tool_calls": [_as_json(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _as_json(call: Call) -> Call:
    function = call["function"]
    given = function["arguments"]
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def argument_objects(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The arguments, not empty, of all calls that have them as objects."""
    for message in messages:
        for call in message.get("tool_calls") or ():
            arguments = call["function"]["arguments"]
            if isinstance(arguments, Mapping) and arguments:
                yield arguments


def _parsed(value: Any) -> Any:
    """What a text is as JSON, where it is an object or a list; everything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
