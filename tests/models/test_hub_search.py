"""The hub is searched by words; offline and unreachable are told apart."""

from __future__ import annotations

import pytest
from support.mini_hub import MiniHub, serve

from whet.engine import api

LISTED: list[dict[str, object]] = [
    {
        "id": "some-org/Some-1B-Instruct",
        "downloads": 12,
        "gated": "manual",
        "safetensors": {"parameters": {"BF16": 1_000_000}, "total": 1_000_000},
        "tags": ["transformers", "license:apache-2.0"],
    },
    {"id": "other-org/Else", "downloads": 5, "gated": False, "tags": []},
]


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for flag in ("WHET_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(flag, raising=False)


def test_a_search_tells_what_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(MiniHub({}, listed=LISTED)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert [one.name for one in api.search_models("e")] == ["some-org/Some-1B-Instruct", "other-org/Else"]
        (found,) = api.search_models("1b")
        assert api.search_models("nothing of that name") == []
    assert found.gated and found.parameters == 1_000_000
    assert found.licence == "apache-2.0" and found.downloads == 12


def test_offline_and_unreachable_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(api.WhetError, match="no answer") as unreachable:
        api.search_models("qwen")
    assert unreachable.value.code == "hub.unreachable"
    monkeypatch.setenv("WHET_OFFLINE", "1")
    with pytest.raises(api.WhetError) as offline:
        api.search_models("qwen")
    assert offline.value.code == "hub.offline" and "WHET_OFFLINE" in offline.value.hint
