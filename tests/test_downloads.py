"""Downloads under a watchdog, from a hub on this machine: kept files, second attempts, refusals."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import pytest
from support.mini_hub import COMMIT, MiniHub, serve

from whet.engine import downloads
from whet.engine.checks.network import Download, DownloadFailed, download_finding
from whet.engine.downloads import arrived, fetch
from whet.engine.errors import WhetError
from whet.engine.models.locate import resolve_model

FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"\x01" * 500_000, "notes.md": b"x"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WHET_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN",
                 "HUGGINGFACE_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def unfinished(cache: Path) -> list[Path]:
    return list(cache.rglob("*.incomplete"))


def test_weights_come_with_their_small_files_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(MiniHub(FILES)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        path = resolve_model(hub.name, weights=True)
    assert path.name == COMMIT
    assert {file.name for file in path.iterdir()} == {"config.json", "model.safetensors"}
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert arrived(hub.name) == len(FILES["config.json"]) + len(FILES["model.safetensors"])


def test_a_stall_is_ended_and_the_second_attempt_goes_through(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = MiniHub(FILES, stalls={"model.safetensors"}, stalls_once=True)
    with serve(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        path = fetch(hub.name, None, ["*"], patience=0.8)
    assert (path / "model.safetensors").stat().st_size == 500_000
    assert hub.sent.count("model.safetensors") == 2
    assert hub.sent.count("config.json") == 1  # what had come was kept
    assert unfinished(cache) == []


def test_a_stall_that_stays_is_an_error_with_the_way_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = MiniHub(FILES, stalls={"model.safetensors"})
    started = time.monotonic()
    with serve(hub), pytest.raises(DownloadFailed) as caught:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        fetch(hub.name, None, ["*"], patience=0.6)
    assert caught.value.code == "model.download_stalled" and "HF_HUB_DISABLE_XET=1" in caught.value.hint
    assert caught.value.finding.id == "E03"
    assert unfinished(cache) == []  # half a file is of no use, and is not left to fill the disk
    assert time.monotonic() - started < 15


def test_slow_is_not_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = MiniHub(FILES, drip=0.12)
    with serve(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        path = fetch(hub.name, None, ["*"], patience=1.5)
    assert (path / "model.safetensors").stat().st_size == 500_000


def test_offline_takes_what_is_cached_and_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(MiniHub(FILES)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        online = fetch(hub.name, None, ["*"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(hub.name, None, ["*"]) == online
    with pytest.raises(DownloadFailed) as caught:
        fetch("tiny/other", None, ["*"])
    assert caught.value.code == "model.not_found"
    assert "HF_HUB_OFFLINE" in caught.value.message and "unset HF_HUB_OFFLINE" in caught.value.hint


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadFailed) as caught:
        fetch("tiny/model", None, ["*"])
    assert caught.value.code == "model.not_found" and "cannot be reached" in caught.value.message


@pytest.mark.parametrize("token, words", [(None, "there is no token"), ("hf_anna0000", "did not deliver")])
def test_a_name_that_does_not_exist(token: str | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with serve(MiniHub(FILES, tokens={"hf_anna0000": "anna"})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(DownloadFailed) as caught:
            fetch("tiny/nothing", None, ["*"])
    assert caught.value.code == "model.download"
    assert "tiny/nothing" in caught.value.message and words in caught.value.message


def test_a_client_that_ends_without_an_answer_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = downloads.start
    monkeypatch.setattr(downloads, "start", lambda module, **options: real("whet.no_such_module", **options))
    with pytest.raises(WhetError, match="ended with code 1"):
        fetch("tiny/model", None, ["*"])


def test_each_kind_of_failure_has_words_and_a_way_on_of_its_own() -> None:
    kinds = ("offline", "unreachable", "stalled", "disk", "gated", "no_token", "refused", "missing")
    findings = [download_finding(Download(kind, "a/b", offline_by=("HF_HUB_OFFLINE",))) for kind in kinds]  # type: ignore[arg-type]
    assert len({finding.title for finding in findings}) == len(kinds)
    assert all(finding.fix is not None and finding.fix.text for finding in findings)


def test_the_error_crosses_process_borders() -> None:
    error = DownloadFailed(Download("gated", "a/b"))
    again = pickle.loads(pickle.dumps(error))
    assert (again.code, again.message, again.hint) == (error.code, error.message, error.hint)
    assert again.finding == error.finding
