"""Clients of the MCP server in this process: results, refusals, and `next` calls made as they stand."""

from __future__ import annotations

from typing import Any

from mcp import Client
from mcp.types import TextContent

LARGEST_RESULT = 7000
"""Characters as JSON; see whet.mcp_server.results."""


async def said(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured result of a call that succeeds; it has what each result has, and is small."""
    answer = await client.call_tool(tool, arguments)
    text = answer.content[0]
    assert isinstance(text, TextContent)
    assert not answer.is_error, text.text
    result = answer.structured_content
    assert result is not None and result["summary"] and isinstance(result["next"], list)
    assert len(text.text) <= LARGEST_RESULT
    return result


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """What an agent reads of a call that fails: ``[code] fact Next: call``."""
    answer = await client.call_tool(tool, arguments)
    text = answer.content[0]
    assert answer.is_error and isinstance(text, TextContent), text
    return text.text


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """Tool and arguments of a call as ``next`` writes it."""
    tool = text.partition("(")[0]
    arguments = eval(text, {"__builtins__": {}, tool: dict, "true": True, "false": False, "null": None})
    return tool, arguments


async def made(client: Client, text: str) -> dict[str, Any]:
    """The result of a `next` call, made exactly as it stands."""
    tool, arguments = parsed(text)
    return await said(client, tool, **arguments)
