"""Calls through a client that the test holds: results, refusals, and `next` calls made as they stand."""

from __future__ import annotations

from typing import Any

from mcp import Client
from support.tool_calls import parsed, text_of

LARGEST_RESULT = 7000
"""Characters as JSON; see whet.mcp_server.results."""


async def said(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured result of a call that succeeds; it has what each result has, and is small."""
    answer = await client.call_tool(tool, arguments)
    text = text_of(answer)
    assert not answer.is_error, text
    result = answer.structured_content
    assert result is not None and result["summary"] and isinstance(result["next"], list)
    assert len(text) <= LARGEST_RESULT
    return result


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """What an agent reads of a call that fails: ``[code] fact Next: call``."""
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error, text_of(answer)
    return text_of(answer)


async def made(client: Client, text: str) -> dict[str, Any]:
    """The result of a `next` call, made exactly as it stands."""
    tool, arguments = parsed(text)
    return await said(client, tool, **arguments)
