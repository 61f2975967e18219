"""Nothing leaves the machine that is unproven, and nothing becomes public unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from whet.engine.errors import WhetError
from whet.engine.export.artifacts import list_artifacts
from whet.engine.export.hub import IGNORED, push_folder, push_part
from whet.engine.export.verdict import Proof, Status, Verdict, fingerprint, save_verdict


class FakeApi:
    """Records calls as HfApi would get them."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error = error

    def create_repo(self, repo_id: str, **rest: Any) -> str:
        if self.error is not None:
            raise self.error
        self.calls.append(("create", {"repo_id": repo_id, **rest}))
        return f"https://hub/{repo_id}"

    def upload_folder(self, **rest: Any) -> None:
        self.calls.append(("upload", rest))


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WHET_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def export(folder: Path, status: Status | None) -> Path:
    folder.mkdir()
    gguf = folder / "model-q8_0.gguf"
    gguf.write_bytes(b"GGUF" + bytes(1000))
    if status is not None:
        proof = Proof(name="logits", status=status, summary="KL is 0.9 nat.")
        save_verdict(Verdict.of([proof], gguf, fingerprint=fingerprint(gguf)), gguf)
    return folder


@pytest.mark.parametrize("status", ["pass", "warn"])
def test_a_proven_folder_goes_up_private(tmp_path: Path, status: Status) -> None:
    api, folder = FakeApi(), export(tmp_path / "e", status)
    assert push_folder(folder, "me/model", api=api) == "https://hub/me/model"
    (_, created), (_, uploaded) = api.calls
    assert created == {"repo_id": "me/model", "private": True, "exist_ok": True}
    assert uploaded["folder_path"] == str(folder) and uploaded["repo_id"] == "me/model"


@pytest.mark.parametrize("status", [None, "fail"])
def test_an_unproven_file_stays_unless_forced(tmp_path: Path, status: Status | None) -> None:
    api, folder = FakeApi(), export(tmp_path / "e", status)
    with pytest.raises(WhetError, match=r"model-q8_0\.gguf") as error:
        push_folder(folder, "me/model", api=api)
    assert error.value.code == "hub.unproven" and not api.calls
    push_folder(folder, "me/model", api=api, force=True, private=False)
    assert api.calls[0][1]["private"] is False


def test_a_changed_file_is_unproven_again(tmp_path: Path) -> None:
    folder = export(tmp_path / "e", "pass")
    (folder / "model-q8_0.gguf").write_bytes(b"GGUF" + bytes(999) + b"x")
    with pytest.raises(WhetError, match="no verdict of exactly this file"):
        push_folder(folder, "me/model", api=FakeApi())


def test_offline_and_without_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(tmp_path / "e", "pass")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(WhetError) as error:
        push_folder(folder, "me/model")
    assert error.value.code == "hub.no_token" and "HF_TOKEN" in error.value.hint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    api = FakeApi()
    with pytest.raises(WhetError) as error:
        push_folder(folder, "me/model", api=api)
    assert error.value.code == "hub.offline" and not api.calls


def test_a_refusal_of_the_hub_is_told(tmp_path: Path) -> None:
    folder = export(tmp_path / "e", "pass")
    with pytest.raises(WhetError) as error:
        push_folder(folder, "me/model", api=FakeApi(ConnectionError("no route")))
    assert error.value.code == "hub.offline"
    from huggingface_hub.errors import HFValidationError

    with pytest.raises(WhetError) as error:
        push_folder(folder, "me//model", api=FakeApi(HFValidationError("bad name")))
    assert error.value.code == "hub.refused" and "bad name" in error.value.message


def test_one_part_of_a_runs_export_goes_up(tmp_path: Path) -> None:
    folder, api = export(tmp_path / "export", "pass"), FakeApi()
    (folder / "Modelfile").write_text("FROM x")
    for name in ("adapter", "merged", ".merged-for-gguf"):
        (folder / name).mkdir()
        (folder / name / "weights.safetensors").write_bytes(bytes(10))
    assert [(one.kind, one.bytes) for one in list_artifacts(folder)] == [
        ("adapter", 10), ("merged", 10), ("modelfile", 6), ("gguf", 1004),
    ]  # fmt: skip
    push_part(folder, "adapter", "me/model", api=api)
    push_part(folder, "gguf", "me/model", api=api)
    adapter, ggufs = (call for kind, call in api.calls if kind == "upload")
    assert adapter["folder_path"] == str(folder / "adapter") and adapter["ignore_patterns"] == IGNORED
    assert ggufs["folder_path"] == str(folder)
    assert {"adapter/**", "merged/**", *IGNORED} <= set(ggufs["ignore_patterns"])


def test_a_part_that_is_missing_or_disproven_stays(tmp_path: Path) -> None:
    folder, api = export(tmp_path / "export", "fail"), FakeApi()
    for part, code in {"merged": "hub.nothing", "gguf": "hub.unproven"}.items():
        with pytest.raises(WhetError) as error:
            push_part(folder, part, "me/model", api=api)  # type: ignore[arg-type]
        assert error.value.code == code
    assert not api.calls
