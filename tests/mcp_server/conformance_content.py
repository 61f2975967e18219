"""Fixtures of the conformance suite that answer at once: content of every kind, notifications."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.server.mcpserver.tools import Tool
from mcp.types import (
    AudioContent,
    CallToolResult,
    Completion,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    TextContent,
    TextResourceContents,
)
from pydantic import AnyUrl

FIXTURE = "A fixture of the conformance suite."
PAUSE = 0.05  # the suite asks for it between notifications
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


def red_pixel() -> bytes:
    """A PNG of one red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\x00\xff\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def silence() -> bytes:
    """A WAV of eight samples of silence."""
    form = struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", 8) + b"\x80" * 8
    return b"RIFF" + struct.pack("<I", len(body)) + body


def text(words: str) -> TextContent:
    return TextContent(type="text", text=words)


def image() -> ImageContent:
    return ImageContent(type="image", data=base64.b64encode(red_pixel()).decode(), mime_type="image/png")


def embedded(uri: str, mime_type: str, words: str) -> EmbeddedResource:
    return EmbeddedResource(
        type="resource", resource=TextResourceContents(uri=uri, mime_type=mime_type, text=words)
    )


def add_content(server: MCPServer[Any]) -> None:
    """Tools, resources and prompts that answer at once."""
    _add_tools(server)
    _add_notifying_tools(server)
    _add_resources(server)
    _add_prompts(server)


def _add_tools(server: MCPServer[Any]) -> None:
    @server.tool(description=FIXTURE)
    def test_simple_text() -> CallToolResult:
        return CallToolResult(content=[text("This is a simple text response for testing.")])

    @server.tool(description=FIXTURE)
    def test_image_content() -> CallToolResult:
        return CallToolResult(content=[image()])

    @server.tool(description=FIXTURE)
    def test_audio_content() -> CallToolResult:
        data = base64.b64encode(silence()).decode()
        return CallToolResult(content=[AudioContent(type="audio", data=data, mime_type="audio/wav")])

    @server.tool(description=FIXTURE)
    def test_embedded_resource() -> CallToolResult:
        words = "This is an embedded resource content."
        return CallToolResult(content=[embedded("test://embedded-resource", "text/plain", words)])

    @server.tool(description=FIXTURE)
    def test_multiple_content_types() -> CallToolResult:
        data = embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
        content: list[ContentBlock] = [text("Multiple content types test:"), image(), data]
        return CallToolResult(content=content)

    @server.tool(description=FIXTURE)
    def test_error_handling() -> CallToolResult:
        raise ToolError("This tool intentionally returns an error for testing")

    tool = Tool.from_function(test_simple_text, name="json_schema_2020_12_tool", description=FIXTURE)
    tool.parameters = SCHEMA
    headed = Tool.from_function(test_simple_text, name="test_custom_headers", description=FIXTURE)
    region = {"type": "string", "x-mcp-header": "Region"}
    headed.parameters = {"type": "object", "properties": {"region": region}}
    for one in (tool, headed):
        server._tool_manager._tools[one.name] = one


def _add_notifying_tools(server: MCPServer[Any]) -> None:
    @server.tool(description=FIXTURE)
    async def test_tool_with_logging(context: Context[Any, Any]) -> CallToolResult:
        for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await context.info(words)
            await anyio.sleep(PAUSE)
        return CallToolResult(content=[text("logged")])

    @server.tool(description=FIXTURE)
    async def test_logging_tool(context: Context[Any, Any]) -> CallToolResult:
        await context.info("heard only by who asked for it")
        return CallToolResult(content=[text("logged")])

    @server.tool(description=FIXTURE)
    async def test_tool_with_progress(context: Context[Any, Any]) -> CallToolResult:
        for done in (0, 50, 100):
            await context.report_progress(done, 100)
            await anyio.sleep(PAUSE)
        return CallToolResult(content=[text("done")])

    @server.tool(description=FIXTURE)
    async def test_reconnection(context: Context[Any, Any]) -> CallToolResult:
        await context.close_sse_stream()
        await anyio.sleep(PAUSE)
        return CallToolResult(content=[text("finished while nobody was listening")])

    @server.tool(description=FIXTURE)
    async def test_trigger_tool_change(context: Context[Any, Any]) -> CallToolResult:
        await context.notify_tools_changed()
        return CallToolResult(content=[text("changed")])

    @server.tool(description=FIXTURE)
    async def test_trigger_prompt_change(context: Context[Any, Any]) -> CallToolResult:
        await context.notify_prompts_changed()
        return CallToolResult(content=[text("changed")])


def _add_resources(server: MCPServer[Any]) -> None:
    @server.resource("test://static-text", mime_type="text/plain", description=FIXTURE)
    def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png", description=FIXTURE)
    def static_binary() -> bytes:
        return red_pixel()

    @server.resource("test://watched-resource", mime_type="text/plain", description=FIXTURE)
    def watched() -> str:
        return "watched"

    @server.resource("test://template/{id}/data", mime_type="application/json", description=FIXTURE)
    def templated(id: str) -> dict[str, Any]:
        return {"id": id, "templateTest": True, "data": f"Data for ID: {id}"}


def _add_prompts(server: MCPServer[Any]) -> None:
    @server.prompt(description=FIXTURE)
    def test_simple_prompt() -> str:
        return "This is a simple prompt for testing."

    @server.prompt(description=FIXTURE)
    def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        return f"Prompt with arguments: arg1={arg1!r}, arg2={arg2!r}"

    @server.prompt(description=FIXTURE)
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
        uri = str(AnyUrl(resourceUri))
        resource = embedded(uri, "text/plain", "Embedded resource content for testing.")
        return [UserMessage(resource), UserMessage("Please process the embedded resource above.")]

    @server.prompt(description=FIXTURE)
    def test_prompt_with_image() -> list[UserMessage]:
        return [UserMessage(image()), UserMessage("Please analyze the image above.")]

    @server.completion()
    async def complete(reference: Any, argument: Any, context: Any) -> Completion:
        return Completion(values=[], total=0, has_more=False)
