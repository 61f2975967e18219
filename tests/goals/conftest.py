"""An offline machine, with an empty cache of the hub or with three models in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cached_models import cache_models
from support.goal_inputs import LARGE, MIDDLE, SMALL
from support.plan_inputs import write_chats
from support.tiny_models import build_tiny_model


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every test may share: whet's home with its caches, and a hub cache of three models."""
    folder = tmp_path_factory.mktemp("kept")
    cache_models(folder / "hub", [SMALL, MIDDLE, LARGE])
    return folder


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: Path) -> Path:
    """An offline machine with an empty hub cache; returns the cache."""
    monkeypatch.setenv("WHET_HOME", str(kept / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("WHET_OFFLINE", "1")
    return tmp_path / "hub"


@pytest.fixture
def three(bare: Path, monkeypatch: pytest.MonkeyPatch, kept: Path) -> Path:
    """A cache with Qwen3 of 0.6, 4 and 8 billion parameters."""
    monkeypatch.setenv("HF_HUB_CACHE", str(kept / "hub"))
    return kept / "hub"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("goals") / "model", "llama")


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    return write_chats(tmp_path / "chats.jsonl", 1200)
