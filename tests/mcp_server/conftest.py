"""A folder to work in, a home of its own, and a caller of tools in both eras of the protocol."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tool_calls import ERAS, Caller


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHET_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture(params=ERAS)
def tools(request: pytest.FixtureRequest, root: Path) -> Caller:
    return Caller(root, request.param)
