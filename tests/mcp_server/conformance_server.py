"""whet's server without a token, for the conformance suite alone: its client cannot send one.

    PYTHONPATH=tests python -P -m mcp_server.conformance_server [--fixtures]

Prints its URL and serves on loopback until it is ended. ``--fixtures`` adds what the full set asks for.
whet-mcp itself has no way to leave the token out.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.types import (
    CallToolResult,
    EmptyResult,
    InputRequiredResult,
    JSONRPCMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    UnsubscribeRequestParams,
)
from mcp_server.conformance_content import add_content
from mcp_server.conformance_dialogues import add_dialogues

from whet.mcp_server.http import LARGEST_BODY, Address, http_server
from whet.mcp_server.options import Options
from whet.mcp_server.server import Server

RETRY_MS = 100


class FixtureServer(Server):
    """whet's tools as they are, and beside them those of the suite, which whet's checks do not know."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        if name in self._tools:
            return await super().call_tool(name, arguments, context)
        return await MCPServer.call_tool(self, name, arguments, context)


class Memory(EventStore):
    """Events of streams, kept in order."""

    def __init__(self) -> None:
        self._events: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        start = int(last_event_id)
        stream = self._events[start - 1][0]
        for number, (name, message) in enumerate(self._events[start:], start=start + 1):
            if name == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


def with_fixtures(options: Options) -> FixtureServer:
    server = FixtureServer(options)
    add_content(server)
    add_dialogues(server)
    low = server._lowlevel_server

    async def nothing(context: Any, params: Any) -> EmptyResult:
        return EmptyResult()

    low.add_request_handler("logging/setLevel", SetLevelRequestParams, nothing)
    low.add_request_handler("resources/subscribe", SubscribeRequestParams, nothing)
    low.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, nothing)
    return server


def main() -> None:
    fixtures = sys.argv[1:] == ["--fixtures"]
    address = Address.parse("127.0.0.1:0")
    with tempfile.TemporaryDirectory() as folder, address.listen() as listening:
        options = Options(root=Path(folder), calls_per_minute=100_000)
        server: MCPServer[Any] = with_fixtures(options) if fixtures else Server(options)
        port = listening.getsockname()[1]
        app = server.streamable_http_app(
            transport_security=address.security(port),
            max_request_body_size=LARGEST_BODY,
            event_store=Memory() if fixtures else None,
            retry_interval=RETRY_MS if fixtures else None,
        )
        print(f"http://127.0.0.1:{port}/mcp", flush=True)
        http_server(app).run(sockets=[listening])


if __name__ == "__main__":
    main()
