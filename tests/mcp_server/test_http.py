"""Over HTTP: nothing without the token, for foreign hosts and pages, or oversized; both eras work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types.version import LATEST_MODERN_VERSION
from support.fake_runs import SOURCE, until

from whet.engine.api import WhetError
from whet.mcp_server.bearer import Bearer, take_bearer
from whet.mcp_server.http import LARGEST_BODY, MOST_SESSIONS, Address, http_app, http_server
from whet.mcp_server.options import Options

TOKEN = "a-token-for-tests-only-0123456789"
EXPIRES = 1_000_000.0
HANDSHAKE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
META = {
    "io.modelcontextprotocol/protocolVersion": LATEST_MODERN_VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Clock:
    """Unix time as the test says."""

    def __init__(self) -> None:
        self.now = EXPIRES - 10

    def __call__(self) -> float:
        return self.now


@contextmanager
def serving(options: Options, bearer: Bearer, names: tuple[str, ...] = ()) -> Iterator[str]:
    """A real server in a thread of this process; yields its URL."""
    address = Address.parse("127.0.0.1:0", names)
    with address.listen() as listening:
        port = listening.getsockname()[1]
        server = http_server(http_app(options, address, bearer, port))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until(lambda: server.started, "the server's start")
        try:
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[str]:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    bearer = Bearer(TOKEN, EXPIRES, clock)
    with serving(Options(root=tmp_path), bearer, names=("whet.example",)) as url:
        yield url


def post(url: str, body: Any = HANDSHAKE, token: str | None = TOKEN, **headers: str) -> httpx2.Response:
    sent = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(url, content=content, headers={**sent, **headers}, timeout=20)


def discover(url: str, **headers: str) -> httpx2.Response:
    """The later revisions' first request, which needs no session."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {"_meta": META}}
    named = {"MCP-Protocol-Version": LATEST_MODERN_VERSION, "Mcp-Method": "server/discover"}
    return post(url, body, **{**named, **headers})


@pytest.mark.parametrize("token", [None, "x", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ÿ" * 20])
def test_nothing_is_answered_without_the_token(url: str, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": b"Bearer " + token.encode("latin-1")}
    for method in ("POST", "GET", "DELETE"):
        said = httpx2.request(method, url, headers=headers, timeout=20)  # type: ignore[arg-type]
        assert said.status_code == 401 and said.json()["error"] == "invalid_token"
        assert said.headers["www-authenticate"].startswith("Bearer") and TOKEN not in said.text


def test_the_token_is_no_basic_login_and_no_part_of_the_address(url: str) -> None:
    assert post(url, token=None, Authorization=f"Basic {TOKEN}").status_code == 401
    assert post(f"{url}?access_token={TOKEN}", token=None).status_code == 401


def test_both_eras_are_answered_with_the_token(url: str) -> None:
    assert post(url).status_code == 200
    said = discover(url)
    assert said.status_code == 200 and LATEST_MODERN_VERSION in said.text


def test_an_expired_token_is_refused_in_the_middle_of_a_session(url: str, clock: Clock) -> None:
    session = post(url).headers["mcp-session-id"]
    listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    assert post(url, listing, **{"Mcp-Session-Id": session}).status_code == 200
    clock.now = EXPIRES
    assert post(url, listing, **{"Mcp-Session-Id": session}).status_code == 401
    assert discover(url).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "127.0.0.1:1"])
def test_a_foreign_host_is_refused(url: str, host: str) -> None:
    assert post(url, Host=host).status_code == 421
    assert discover(url, Host=host).status_code == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost"])
def test_a_foreign_page_is_refused(url: str, origin: str) -> None:
    assert post(url, Origin=origin).status_code == 403
    assert discover(url, Origin=origin).status_code == 403


def test_the_operators_own_names_are_answered(url: str) -> None:
    port = url.split(":")[2].partition("/")[0]
    for host, origin in (
        (f"localhost:{port}", f"http://localhost:{port}"),
        ("whet.example", "https://whet.example"),
        ("whet.example:8443", "https://whet.example:8443"),
    ):
        assert post(url, Host=host, Origin=origin).status_code == 200


def test_an_oversized_body_is_refused(url: str) -> None:
    padding = {**HANDSHAKE, "padding": "x" * LARGEST_BODY}
    assert post(url, padding).status_code == 413
    chunks = (b"x" * 65536 for _ in range(LARGEST_BODY // 65536 + 1))
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    assert httpx2.post(url, content=chunks, headers=headers, timeout=20).status_code == 413
    assert post(url).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[]", b'"text"', b'{"jsonrpc": "2.0"}'])
def test_a_body_that_is_no_request_is_refused(url: str, body: bytes) -> None:
    assert 400 <= post(url, body).status_code < 500


def test_sessions_are_limited_and_end_when_the_client_says_so(url: str) -> None:
    sessions = [post(url).headers["mcp-session-id"] for _ in range(MOST_SESSIONS)]
    assert post(url).status_code == 503
    bearer = {"Authorization": f"Bearer {TOKEN}", "Mcp-Session-Id": sessions[0]}
    assert httpx2.delete(url, headers=bearer, timeout=20).status_code == 200
    assert until(lambda: post(url).status_code == 200, "room for a session")


def test_only_one_path_exists(url: str) -> None:
    base = url.removesuffix("/mcp")
    for path in ("/", "/sse", "/.well-known/oauth-protected-resource", "/mcp/..%2f"):
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx2.get(base + path, headers=bearer, timeout=20).status_code in (400, 404)


@pytest.mark.parametrize("era", ["legacy", "auto"])
def test_a_whole_client_works_in_both_eras(url: str, era: str) -> None:
    async def ask() -> tuple[str, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(streamable_http_client(url, http_client=http), mode=era) as client,
        ):
            result = await client.call_tool("job_list", {})
            return client.protocol_version, result.structured_content or {}

    version, result = anyio.run(ask)
    assert version == ("2025-11-25" if era == "legacy" else LATEST_MODERN_VERSION)
    assert result["next"] and "run" in result["summary"]


def test_a_token_leaves_the_environment() -> None:
    environment = {"T": f" {TOKEN}\n", "T_EXPIRES": "2999-01-01T00:00:00Z", "OTHER": "stays"}
    bearer = take_bearer("T", environment)
    assert environment == {"OTHER": "stays"}
    access = anyio.run(bearer.verify_token, TOKEN)
    assert access is not None and access.client_id == "operator"
    assert anyio.run(bearer.verify_token, f" {TOKEN}") is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("127.0.0.1", "http.address"),
        (":8765", "http.address"),
        ("127.0.0.1:", "http.address"),
        ("127.0.0.1:65536", "http.address"),
        ("127.0.0.1:-1", "http.address"),
        ("0.0.0.0:8765", "http.names"),
        ("[::]:8765", "http.names"),
        ("192.168.0.4:8765", "http.names"),
        ("localhost.evil.example:8765", "http.names"),
    ],
)
def test_addresses_that_are_refused(text: str, code: str) -> None:
    with pytest.raises(WhetError) as error:
        Address.parse(text)
    assert error.value.code == code


@pytest.mark.parametrize(
    ("text", "host"), [("localhost:1", "localhost"), ("[::1]:1", "::1"), ("127.8.8.8:1", "127.8.8.8")]
)
def test_addresses_that_only_this_machine_reaches(text: str, host: str) -> None:
    assert Address.parse(text) == Address(host, 1)


def test_the_command_serves_and_stops_when_told(tmp_path: Path) -> None:
    words = ["--root", str(tmp_path), "--http", "127.0.0.1:0", "--token-env", "WHET_TEST_TOKEN"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "whet.mcp_server", *words],
        env={
            **os.environ,
            "WHET_TEST_TOKEN": TOKEN,
            "WHET_HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(SOURCE),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    url = next(word.rstrip(",") for word in line.split() if word.startswith("http"))
    headers = {"Authorization": f"Bearer {TOKEN}", "Accept": "text/event-stream"}
    session = post(url).headers["mcp-session-id"]
    with httpx2.stream("GET", url, headers={**headers, "Mcp-Session-Id": session}, timeout=20) as stream:
        assert stream.status_code == 200
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert out == "" and TOKEN not in err and "Traceback" not in err
