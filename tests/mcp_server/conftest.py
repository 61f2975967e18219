"""Both eras of the protocol, a home for each test, and servers whose root is the test's folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import Implementation
from support.tool_calls import Caller

from whet.engine import api
from whet.mcp_server.options import TOOLSETS, Options
from whet.mcp_server.server import Server

Connect = Callable[..., Client]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["legacy", "auto"])
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that starts in this process confines it to its root: until the end of a test only."""
    monkeypatch.setenv("WHET_FILES_WITHIN", "")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHET_OFFLINE", "1")
    return tmp_path / "home"


@pytest.fixture
def connect(home: Path, tmp_path: Path, era: str) -> Connect:
    """A client called ``tester`` of a new server; keywords are the operator's options, then the client's."""

    def make(*, options: dict[str, Any] | None = None, **client: Any) -> Client:
        chosen = Options(**{"root": tmp_path, "toolsets": frozenset(TOOLSETS), **(options or {})})
        info = Implementation(name="tester", version="1")
        return Client(Server(chosen), mode=era, client_info=info, **client)

    return make


@pytest.fixture
def root(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder beside whet's home, with nothing in it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def tools(root: Path, era: str) -> Caller:
    """Calls tools of one server whose root is that folder, without a client to care for."""
    return Caller(root, era)


@cache
def _demo_plan(cached: Path) -> api.Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHET_HOME", str(cached))
        return api.plan(api.recipe("demo", ["export.gguf=[]", "training.max_steps=6", "training.threads=1"]))


@pytest.fixture
def demo_plan(tmp_path_factory: pytest.TempPathFactory) -> api.Plan:
    """A short plan of the demo, made once; its prepared data outlives the tests' homes."""
    return _demo_plan(tmp_path_factory.getbasetemp() / "planned")
