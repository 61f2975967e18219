"""A model hub of one repository on this machine: as much of the protocol as is needed, and faults."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class MiniHub:
    """A hub with one model.

    Args:
        files: of the model.
        tokens: who they belong to; others are refused.
        gated: only these users may download; None: everybody.
        stalls: files whose first half comes, and then nothing.
        stalls_once: only the first time they are asked for.
        drip: seconds between the tenths of a file.
    """

    files: dict[str, bytes]
    name: str = "tiny/model"
    tokens: dict[str, str] = field(default_factory=dict)
    gated: tuple[str, ...] | None = None
    stalls: set[str] = field(default_factory=set)
    stalls_once: bool = False
    drip: float = 0.0
    listed: list[dict[str, object]] = field(default_factory=list)
    """What a search finds among, as the hub lists models."""
    sent: list[str] = field(default_factory=list)
    """Files asked for, in order."""
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""


@contextmanager
def serve(hub: MiniHub) -> Iterator[MiniHub]:
    """Serve ``hub`` until the block ends; its address is then in ``hub.url``."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers of one hub; :func:`serve` says which."""

    hub: MiniHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _user(self) -> str | None:
        said = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        return self.hub.tokens.get(said) if said else None

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/whoami-v2":
            user = self._user()
            self._say(200 if user else 401, json.dumps({"name": user}).encode(), body)
        elif path == "/api/models":
            words = parse_qs(self.path.partition("?")[2]).get("search", [""])[0]
            listed = [one for one in self.hub.listed if words.lower() in str(one["id"]).lower()]
            self._say(200, json.dumps(listed).encode(), body)
        elif path.startswith(f"/api/models/{self.hub.name}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.hub.files.items()
            ]
            self._say(200, json.dumps(tree).encode(), body)
        elif re.match(rf"/api/models/{self.hub.name}(/|$)", path):
            siblings = [{"rfilename": name} for name in self.hub.files]
            found = {"id": self.hub.name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            self._say(200, json.dumps(found).encode(), body)
        elif match := re.fullmatch(rf"/{self.hub.name}/resolve/[^/]+/(.+)", path):
            self._file(match[1], body)
        else:
            # As the hub does: who does not say who they are learns nothing.
            self._say(404 if self._user() else 401, b"{}", body, {"X-Error-Code": "RepoNotFound"})

    def _file(self, name: str, body: bool) -> None:
        if self.hub.gated is not None and self._user() not in self.hub.gated:
            words = "Access to this model is restricted."
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": words}
            self._say(403 if self._user() else 401, words.encode(), body, headers)
            return
        data = self.hub.files[name]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if not body:
            self._say(200, data, False, headers)
            return
        self.hub.sent.append(name)
        self._begin(200, len(data), headers)
        if name in self.hub.stalls:
            if self.hub.stalls_once:
                self.hub.stalls.discard(name)
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.hub.closing.wait()  # as a dead connection: neither bytes nor an end
            return
        tenth = -(-len(data) // 10)
        for start in range(0, len(data), tenth):
            self.wfile.write(data[start : start + tenth])
            self.wfile.flush()
            self.hub.closing.wait(self.hub.drip)

    def _say(self, code: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self._begin(code, len(data), headers or {})
        if body:
            self.wfile.write(data)

    def _begin(self, code: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(key, value)
        self.end_headers()
