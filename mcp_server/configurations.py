"""What to paste into a client's configuration so that it starts, or calls, this server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

CLIENTS = {
    "claude-code": ".mcp.json in the project",
    "codex": "~/.codex/config.toml, or .codex/config.toml in a trusted project",
    "cursor": ".cursor/mcp.json in the project, or ~/.cursor/mcp.json",
    "vscode": ".vscode/mcp.json in the project",
    "generic": "the client's list of servers",
}
"""Client -> the file in which it looks."""
CALL_SECONDS = 120
"""Codex' patience with one call; most tools take seconds, job_wait up to 50."""


def started(client: str, command: Sequence[str]) -> str:
    """The configuration for a server that the client starts itself, over stdio."""
    program, *arguments = command
    plain = {"command": program, "args": arguments}
    if client == "codex":
        lines = [
            "[mcp_servers.whet]",
            f"command = {_toml(program)}",
            f"args = [{', '.join(map(_toml, arguments))}]",
            f"tool_timeout_sec = {CALL_SECONDS}",
        ]
        return "\n".join(lines) + "\n"
    if client == "vscode":
        return _json({"servers": {"whet": {"type": "stdio", **plain}}})
    if client == "claude-code":
        return _json({"mcpServers": {"whet": {"type": "stdio", **plain}}})
    return _json({"mcpServers": {"whet": plain}})


def called(client: str, url: str, variable: str) -> str:
    """The configuration for a server that runs already, over HTTP; the token stays in ``variable``."""
    if client == "codex":
        lines = [
            "[mcp_servers.whet]",
            f"url = {_toml(url)}",
            f"bearer_token_env_var = {_toml(variable)}",
            f"tool_timeout_sec = {CALL_SECONDS}",
        ]
        return "\n".join(lines) + "\n"
    if client == "vscode":
        asked = {"type": "promptString", "id": "whet-token", "description": "Token of whet", "password": True}
        server = {"type": "http", "url": url, "headers": _bearer("${input:whet-token}")}
        return _json({"inputs": [asked], "servers": {"whet": server}})
    if client == "claude-code":
        return _json(
            {"mcpServers": {"whet": {"type": "http", "url": url, "headers": _bearer(f"${{{variable}}}")}}}
        )
    token = f"${{env:{variable}}}" if client == "cursor" else "<the token>"
    return _json({"mcpServers": {"whet": {"url": url, "headers": _bearer(token)}}})


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _toml(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's as well, once DEL is escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
