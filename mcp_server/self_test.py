"""``whet-mcp --self-test``: start the real server as a client would, and print what the client sees."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp.types import TextContent, TextResourceContents, Tool, ToolAnnotations

ERAS = ("legacy", "auto")
"""The handshake of the revisions up to 2025-11-25, and the later ones' discovery."""
LARGEST_TOOLS = 16_000
"""Bytes that all definitions may take of an agent's context."""
READ_ONLY_TOOL = "env_inspect"
GUIDE = "whet://guide"
PATIENCE = 60.0
"""Seconds for one answer."""


async def self_test(command: Sequence[str], say: Callable[[str], None]) -> bool:
    """Whether handshake, tools, one call and the guide work in both eras; each is told to ``say``."""
    program, *arguments = command
    server = StdioServerParameters(command=program, args=arguments, env=dict(os.environ))
    fine = True
    for era in ERAS:
        try:
            async with Client(server, mode=era, read_timeout_seconds=PATIENCE) as client:
                fine = await _examine(client, say, details=era == ERAS[0]) and fine
        except (MCPError, OSError, TimeoutError, ExceptionGroup) as error:
            say(f"{era}: no answer: {error!r}")
            fine = False
    say("self-test: pass" if fine else "self-test: FAIL")
    return fine


async def _examine(client: Client, say: Callable[[str], None], details: bool) -> bool:
    said = client.server_info
    name = f"{said.name} {said.version}" if said else "a server without a name"
    say(f"protocol {client.protocol_version}: {name}")
    tools = (await client.list_tools()).tools
    small = _tell_tools(tools, say if details else lambda line: None)
    called = True
    if any(tool.name == READ_ONLY_TOOL for tool in tools):
        result = await client.call_tool(READ_ONLY_TOOL, {})
        text = next((part.text for part in result.content if isinstance(part, TextContent)), "")
        called = not result.is_error and bool(result.structured_content)
        summary = (result.structured_content or {}).get("summary", text)
        say(f"  {READ_ONLY_TOOL} ({len(text):,} characters): {summary}")
    guide = (await client.read_resource(GUIDE)).contents[0]
    words = len(guide.text.split()) if isinstance(guide, TextResourceContents) else 0
    say(f"  {GUIDE}: {words} words")
    return bool(tools) and small and called and words > 0


def _tell_tools(tools: Sequence[Tool], say: Callable[[str], None]) -> bool:
    """A line a tool: what it may do and the bytes of its definition. Whether all fit."""
    total = 0
    for tool in tools:
        size = len(tool.model_dump_json(by_alias=True, exclude_none=True).encode())
        total += size
        say(f"  {letters(tool.annotations):3} {tool.name:18} {size:6,} bytes")
    say(f"  {len(tools)} tools, {total:,} of at most {LARGEST_TOOLS:,} bytes")
    return total <= LARGEST_TOOLS


def letters(annotations: ToolAnnotations | None) -> str:
    """R reads; W writes, D also destroys; O reaches beyond this machine."""
    if annotations is None:
        return "?"
    kind = "R" if annotations.read_only_hint else "D" if annotations.destructive_hint else "W"
    return kind + ("O" if annotations.open_world_hint else "")
