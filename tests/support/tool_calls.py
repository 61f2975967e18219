"""One call of a tool through the SDK's in-memory client, and the calls that a result's `next` names."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import anyio
from mcp import Client
from mcp.types import CallToolResult, TextContent

from whet.mcp_server.options import Options
from whet.mcp_server.server import Server

ERAS = ("legacy", "auto")
WORDS = {"true": True, "false": False, "null": None}


class Caller:
    """Calls tools of one server in one era of the protocol; each call is a session of its own."""

    def __init__(self, root: Path, era: str, **options: Any) -> None:
        self.server, self.era = Server(Options(root=root, **options)), era
        self.known = anyio.run(self._list)

    async def _list(self) -> dict[str, set[str]]:
        """Tools that are offered, with their arguments."""
        async with Client(self.server, mode=self.era) as client:
            tools = (await client.list_tools()).tools
            return {tool.name: set(tool.input_schema.get("properties", {})) for tool in tools}

    def result(self, tool: str, **arguments: Any) -> CallToolResult:
        async def ask() -> CallToolResult:
            async with Client(self.server, mode=self.era) as client:
                return await client.call_tool(tool, arguments)

        return anyio.run(ask)

    def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The facts of a call that succeeds; text and structure are the same, ``next`` can be called."""
        result = self.result(tool, **arguments)
        facts = result.structured_content
        assert not result.is_error and facts is not None, text_of(result)
        assert facts == json.loads(text_of(result))
        for call in facts["next"]:
            name, named = parsed(call)
            assert set(named) <= self.known[name], call
        return facts

    def refused(self, tool: str, **arguments: Any) -> str:
        """The words of a call that fails."""
        result = self.result(tool, **arguments)
        assert result.is_error, text_of(result)
        return text_of(result)

    def follow(self, call: str) -> dict[str, Any]:
        """Make the call that a result's ``next`` names, as it stands."""
        tool, arguments = parsed(call)
        return self(tool, **arguments)


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def parsed(call: str) -> tuple[str, dict[str, Any]]:
    """``job_wait(run_id="a")`` -> its tool and arguments, whose values are JSON."""
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args
    return node.func.id, {str(one.arg): ast.literal_eval(_Words().visit(one.value)) for one in node.keywords}


class _Words(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(WORDS[node.id])
