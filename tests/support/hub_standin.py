"""A hub to upload to, on this machine: repositories, LFS storage in parts, commits, and faults to order.

It speaks what huggingface_hub's client speaks when it uploads over plain HTTP: who am I, create, paths-info,
validate-yaml, preupload, LFS batch, PUT of whole files and of parts, completion, verify, commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

TOKEN = "hf_standinWriteToken0123456789"
SIGNATURE = "c0ffee5ecre7c0ffee5ecre7"
"""In the addresses of the storage, as a cloud signs them: whoever has it may write."""
WEIGHTS = (".safetensors", ".gguf", ".bin")


@dataclass
class Fault:
    """What happens to requests that match, instead of an answer; ``times`` of them, after ``skip`` others.

    Args:
        where: regular expression on "METHOD /path".
        status: of the answer, or None: the connection drops in the middle of the body.
        stalls: neither bytes nor an answer, until the hub ends.
    """

    where: str
    status: int | None
    says: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    skip: int = 0
    stalls: bool = False


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    lfs: dict[str, str] = field(default_factory=dict)
    """Path -> SHA-256; the bytes lie in the hub's storage."""
    commits: list[list[str]] = field(default_factory=list)
    """The paths of each."""


@dataclass
class StandIn:
    """The hub's state, to look at and to prepare.

    Args:
        tokens: whose they are; ``readers`` may not write.
        part_bytes: larger files go up in parts of this size.
        quota: bytes that the storage takes.
    """

    tokens: dict[str, str] = field(default_factory=lambda: {TOKEN: "me"})
    readers: tuple[str, ...] = ()
    part_bytes: int = 1 << 20
    quota: int = 1 << 40
    faults: list[Fault] = field(default_factory=list)
    repositories: dict[str, Repository] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    """ "METHOD /path" of each request, in order."""
    received: int = 0
    """Bytes that came into the storage, twice sent ones twice."""
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def content(self, repo: str, path: str) -> bytes:
        """What lies there now."""
        found = self.repositories[repo]
        return self.storage[found.lfs[path]] if path in found.lfs else found.files[path]

    def names(self, repo: str) -> list[str]:
        found = self.repositories[repo]
        return sorted([*found.files, *found.lfs])

    def puts(self) -> int:
        """How many times bytes were sent to the storage."""
        return sum(one.startswith("PUT ") for one in self.seen)


@contextmanager
def in_place_of_the_hub(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """:func:`serve` it, and have the hub's client of this process take it for the real one."""
    for name in ("WHET_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with serve(hub):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        yield hub


@contextmanager
def serve(hub: StandIn) -> Iterator[StandIn]:
    """Serve ``hub`` until the block ends; its address is then in ``hub.url``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
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


Answer = tuple[int, dict[str, Any] | list[Any], dict[str, str]]


def _handler(hub: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_PUT(self) -> None:
            self._serve()

        def log_message(self, *_: object) -> None:
            pass

        def _serve(self) -> None:
            line = f"{self.command} {urlsplit(self.path).path}"
            hub.seen.append(line)
            fault = _due(hub, line)
            if fault is not None and fault.stalls:
                hub.closing.wait()
            if fault is not None and fault.status is None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                self.close_connection = True
                self.connection.close()
                return
            body = self._body()
            if fault is not None:
                words = {"error": fault.says}
                told = {"X-Error-Message": fault.says} if fault.says else {}
                self._say(fault.status or 500, words, told | fault.headers)
                return
            said = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
            self._say(*_answer(hub, line, self.path, body, hub.tokens.get(said)))

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)

        def _say(self, code: int, answer: Any, headers: dict[str, str]) -> None:
            data = json.dumps(answer).encode()
            self.send_response(code)
            kind = {"Content-Type": "application/json", "Content-Length": str(len(data))}
            for key, value in (headers | kind).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)

    return Handler


def _due(hub: StandIn, line: str) -> Fault | None:
    with hub.lock:
        for fault in hub.faults:
            if fault.times > 0 and re.search(fault.where, line):
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
    return None


def _answer(hub: StandIn, line: str, address: str, body: bytes, user: str | None) -> Answer:
    query = {key: values[0] for key, values in parse_qs(urlsplit(address).query).items()}
    for pattern, act in OPEN.items():
        if match := re.fullmatch(pattern, line):
            return act(hub, match, query, body)
    if user is None:
        return 401, {"error": "Invalid credentials"}, {"X-Error-Message": "Invalid username or password."}
    if line == "GET /api/whoami-v2":
        return 200, {"name": user, "type": "user"}, {}
    if line == "POST /api/repos/create":
        return _create(hub, json.loads(body), user)
    for pattern, act_on in OF_A_REPOSITORY.items():
        if match := re.fullmatch(pattern, line):
            found = hub.repositories.get(match["repo"])
            owner = match["repo"].partition("/")[0]
            if found is None or (found.private and owner != user):
                return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            if line.startswith("POST") and "paths-info" not in line and not _may_write(hub, user, owner):
                words = f"You don't have the rights to write to {match['repo']}."
                return 403, {"error": words}, {"X-Error-Message": words}
            return act_on(hub, match["repo"], body)
    return 404, {"error": f"no such place: {line}"}, {}


def _may_write(hub: StandIn, user: str, owner: str) -> bool:
    return owner == user and user not in hub.readers


def _create(hub: StandIn, asked: dict[str, Any], user: str) -> Answer:
    owner = asked.get("organization") or user
    name = f"{owner}/{asked['name']}"
    if not _may_write(hub, user, owner):
        words = f"You don't have the rights to create a model under the namespace {owner}."
        return 403, {"error": words}, {"X-Error-Message": words}
    place = {"url": f"{hub.url}/{name}"}
    if name in hub.repositories:
        return 409, {"error": "You already created this model repo", **place}, {}
    hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
    return 200, place, {}


def _info(hub: StandIn, repo: str, _: bytes) -> Answer:
    found = hub.repositories[repo]
    siblings = [{"rfilename": name} for name in hub.names(repo)]
    sha = f"{len(found.commits):040x}"
    return 200, {"id": repo, "private": found.private, "sha": sha, "siblings": siblings, "tags": []}, {}


def _paths(hub: StandIn, repo: str, body: bytes) -> Answer:
    found, told = hub.repositories[repo], []
    for path in parse_qs(body.decode())["paths"]:
        if path in found.files:
            data = found.files[path]
            told.append({"type": "file", "path": path, "size": len(data), "oid": git_hash(data)})
        elif path in found.lfs:
            oid, size = found.lfs[path], len(hub.storage[found.lfs[path]])
            lfs = {"oid": oid, "size": size, "pointerSize": 134}
            told.append({"type": "file", "path": path, "size": size, "oid": "0" * 40, "lfs": lfs})
    return 200, told, {}


def _preupload(hub: StandIn, repo: str, body: bytes) -> Answer:
    found, told = hub.repositories[repo], []
    for one in json.loads(body)["files"]:
        path = one["path"]
        large = path.endswith(WEIGHTS) or one["size"] > 10 << 20
        data = found.files.get(path)
        oid = found.lfs.get(path) if large else git_hash(data) if data is not None else None
        mode = "lfs" if large else "regular"
        told.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return 200, {"files": told}, {}


def _batch(hub: StandIn, _: str, body: bytes) -> Answer:
    told: list[dict[str, Any]] = []
    for one in json.loads(body)["objects"]:
        oid, size = one["oid"], one["size"]
        if oid in hub.storage:
            told.append({"oid": oid, "size": size})
        elif sum(map(len, hub.storage.values())) + size > hub.quota:
            said = {
                "code": 403,
                "message": "Private repository storage limit reached, please upgrade your plan",
            }
            told.append({"oid": oid, "size": size, "error": said})
        else:
            signed = f"X-Amz-Signature={SIGNATURE}"
            upload: dict[str, Any] = {"href": f"{hub.url}/storage/{oid}?{signed}"}
            if size > hub.part_bytes:
                count = -(-size // hub.part_bytes)
                numbered = {str(n): f"{hub.url}/storage/{oid}?part={n}&{signed}" for n in range(1, count + 1)}
                upload = {
                    "href": f"{hub.url}/complete/{oid}",
                    "header": {"chunk_size": str(hub.part_bytes), **numbered},
                }
            verify = {"href": f"{hub.url}/verify/{oid}"}
            told.append({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
    return 200, {"transfer": "multipart", "objects": told}, {}


def _store(hub: StandIn, match: re.Match[str], query: dict[str, str], body: bytes) -> Answer:
    if query.get("X-Amz-Signature") != SIGNATURE:
        return 403, {"error": "signature"}, {}
    hub.received += len(body)
    if "part" in query:
        hub.parts.setdefault(match["oid"], {})[int(query["part"])] = body
        return 200, {}, {"ETag": hashlib.md5(body).hexdigest()}
    return _keep(hub, match["oid"], body)


def _complete(hub: StandIn, match: re.Match[str], _: dict[str, str], body: bytes) -> Answer:
    parts = hub.parts.pop(match["oid"])
    said = {one["partNumber"]: one["etag"] for one in json.loads(body)["parts"]}
    if said != {number: hashlib.md5(part).hexdigest() for number, part in parts.items()}:
        return 400, {"error": "the parts are not those that were sent"}, {}
    return _keep(hub, match["oid"], b"".join(parts[number] for number in sorted(parts)))


def _keep(hub: StandIn, oid: str, data: bytes) -> Answer:
    if hashlib.sha256(data).hexdigest() != oid:
        return 400, {"error": "the bytes are not those that were announced"}, {}
    hub.storage[oid] = data
    return 200, {}, {}


def _verify(hub: StandIn, match: re.Match[str], _: dict[str, str], body: bytes) -> Answer:
    there = hub.storage.get(match["oid"])
    right = there is not None and len(there) == json.loads(body)["size"]
    return (200 if right else 404), {}, {}


def _xet_token(hub: StandIn, _: str, __: bytes) -> Answer:
    """Xet's storage is this hub, which knows no more of it than its faults."""
    return 200, {"accessToken": TOKEN, "exp": 4102444800, "casUrl": hub.url}, {}


def _commit(hub: StandIn, repo: str, body: bytes) -> Answer:
    found = hub.repositories[repo]
    lines = [json.loads(line) for line in body.splitlines()]
    written = []
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            found.files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.storage:
                return 400, {"error": f"{value['path']} points to bytes that are not here"}, {}
            found.lfs[value["path"]] = value["oid"]
        if line["key"] != "header":
            written.append(value["path"])
    found.commits.append(written)
    oid = f"{len(found.commits):040x}"
    return 200, {"commitUrl": f"{hub.url}/{repo}/commit/{oid}", "commitOid": oid}, {}


def _validate(hub: StandIn, _: re.Match[str], __: dict[str, str], body: bytes) -> Answer:
    errors = [{"message": words} for words in card_errors(json.loads(body)["content"])]
    return (400 if errors else 200), {"errors": errors, "warnings": []}, {}


def card_errors(text: str) -> list[str]:
    """What the hub says of a card's metadata: it must be YAML, and its fields of the right kinds."""
    match = re.match(r"---\n(.*?)\n---(\n|$)", text, re.S)
    if match is None:
        return ["no metadata block"]
    try:
        front = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(front, dict):
        return ["metadata is no mapping"]
    kinds: dict[str, type] = {"tags": list, "library_name": str, "pipeline_tag": str, "license": str}
    wrong = [name for name, kind in kinds.items() if name in front and not isinstance(front[name], kind)]
    return [f'"{name}" has the wrong kind' for name in wrong]


def git_hash(data: bytes) -> str:
    """As git names a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


Act = Callable[[StandIn, re.Match[str], dict[str, str], bytes], Answer]
OID = r"(?P<oid>[0-9a-f]{64})"
OPEN: dict[str, Act] = {
    rf"PUT /storage/{OID}": _store,
    rf"POST /complete/{OID}": _complete,
    rf"POST /verify/{OID}": _verify,
    r"POST /api/validate-yaml": _validate,
}
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
OF_A_REPOSITORY: dict[str, Callable[[StandIn, str, bytes], Answer]] = {
    rf"GET /api/models/{REPO}(/revision/main)?": _info,
    rf"POST /api/models/{REPO}/paths-info/main": _paths,
    rf"POST /api/models/{REPO}/preupload/main": _preupload,
    rf"POST /{REPO}\.git/info/lfs/objects/batch": _batch,
    rf"POST /api/models/{REPO}/commit/main": _commit,
    rf"GET /api/models/{REPO}/xet-write-token/main": _xet_token,
}
