"""Pushing, through the hub's own client, to a stand-in of the hub that runs here."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import get_session
from huggingface_hub.utils._xet import abort_xet_session
from support.hub_standin import SIGNATURE, TOKEN, Fault, Repository, StandIn, in_place_of_the_hub

from whet.engine.errors import WhetError
from whet.engine.export import upload as upload_module
from whet.engine.export.hub import push_folder
from whet.engine.export.upload import Item, upload
from whet.engine.export.verdict import Proof, Status, Verdict, fingerprint, save_verdict
from whet.engine.runs.events import Event, ExportEvent, PhaseEvent

WEIGHTS = b"GGUF" + bytes(range(256)) * 12_000  # three parts


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the hub's client would have waited before it tried again."""
    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    return waited


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[StandIn]:
    """A hub with nothing in it."""
    with in_place_of_the_hub(StandIn(), monkeypatch) as hub:
        yield hub


def export(folder: Path, status: Status | None = "pass", data: bytes = WEIGHTS) -> Path:
    folder.mkdir()
    (folder / "Modelfile").write_text("FROM ./model-q8_0.gguf\n")
    (folder / "README.md").write_text("---\ntags: [whet]\n---\n# Card\n")
    (folder / ".hidden").write_text("stays")
    (folder / "half.gguf.partial").write_bytes(b"stays")
    gguf = folder / "model-q8_0.gguf"
    gguf.write_bytes(data)
    if status is not None:
        proof = Proof(name="logits", status=status, summary="KL is 0.9 nat.")
        save_verdict(Verdict.of([proof], gguf, fingerprint=fingerprint(gguf)), gguf)
    return folder


@pytest.mark.parametrize("status", ["pass", "warn"])
def test_a_proven_folder_goes_up_private_with_its_progress(
    hub: StandIn, tmp_path: Path, status: Status
) -> None:
    folder, told = export(tmp_path / "e", status), list[Event]()
    assert push_folder(folder, "me/model", tell=told.append) == f"{hub.url}/me/model"
    assert hub.repositories["me/model"].private
    names = ["Modelfile", "README.md", "model-q8_0.gguf", "model-q8_0.verdict.json"]
    assert hub.names("me/model") == names
    assert hub.content("me/model", "model-q8_0.gguf") == WEIGHTS
    verdict = json.loads(hub.content("me/model", "model-q8_0.verdict.json"))
    assert verdict["gguf"] == "model-q8_0.gguf" and verdict["status"] == status
    assert Verdict.model_validate(verdict).fingerprint == fingerprint(folder / "model-q8_0.gguf")
    phases = [event for event in told if isinstance(event, PhaseEvent)]
    files = {event.path: event for event in told if isinstance(event, ExportEvent)}
    assert sorted(files) == names and all(event.detail["how"] == "uploaded" for event in files.values())
    assert phases[0].done == 0 and phases[0].total == sum(event.bytes for event in files.values())


@pytest.mark.parametrize("status", [None, "fail"])
def test_an_unproven_file_stays_unless_forced(hub: StandIn, tmp_path: Path, status: Status | None) -> None:
    folder = export(tmp_path / "e", status)
    with pytest.raises(WhetError, match=r"model-q8_0\.gguf") as error:
        push_folder(folder, "me/model")
    assert error.value.code == "hub.unproven" and hub.seen == []
    push_folder(folder, "me/model", force=True, private=False)
    assert not hub.repositories["me/model"].private


def test_a_changed_file_is_unproven_again(hub: StandIn, tmp_path: Path) -> None:
    folder = export(tmp_path / "e", "pass")
    (folder / "model-q8_0.gguf").write_bytes(b"GGUF" + bytes(999) + b"x")
    with pytest.raises(WhetError, match="no verdict of exactly this file"):
        push_folder(folder, "me/model")
    assert hub.seen == []


def test_offline_and_without_token(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(tmp_path / "e")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(WhetError) as error:
        push_folder(folder, "me/model")
    assert error.value.code == "hub.no_token" and "HF_TOKEN" in error.value.hint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WhetError) as error:
        push_folder(folder, "me/model")
    assert error.value.code == "hub.offline" and hub.seen == []


def test_what_is_private_never_goes_into_a_public_repository(hub: StandIn, tmp_path: Path) -> None:
    hub.repositories["me/model"] = Repository(private=False)
    folder = export(tmp_path / "e")
    with pytest.raises(WhetError) as error:
        push_folder(folder, "me/model")
    assert error.value.code == "hub.public" and hub.names("me/model") == []
    push_folder(folder, "me/model", private=False)
    assert "model-q8_0.gguf" in hub.names("me/model")


def test_what_is_there_is_not_sent_again(hub: StandIn, tmp_path: Path) -> None:
    folder, told = export(tmp_path / "e"), list[Event]()
    push_folder(folder, "me/model")
    commits, received = len(hub.repositories["me/model"].commits), hub.received
    (folder / "Modelfile").write_text("FROM ./model-q8_0.gguf\nPARAMETER top_k 3\n")
    push_folder(folder, "me/model", tell=told.append)
    assert hub.received == received and len(hub.repositories["me/model"].commits) == commits + 1
    assert hub.repositories["me/model"].commits[-1] == ["Modelfile"]
    how = {event.path: event.detail["how"] for event in told if isinstance(event, ExportEvent)}
    assert how.pop("Modelfile") == "uploaded" and set(how.values()) == {"present"}
    push_folder(folder, "me/model")
    assert len(hub.repositories["me/model"].commits) == commits + 1


def test_an_interrupted_upload_goes_on(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second large file breaks off for good; the first is a commit of its own, and stays."""
    monkeypatch.setattr(upload_module, "LARGE", 1_000_000)
    folder = export(tmp_path / "e")
    for name in ("b", "c"):
        (folder / f"{name}.safetensors").write_bytes(name.encode() * 2_500_000)
    hub.faults = [Fault("PUT /storage/", None, times=1000, skip=3)]
    with pytest.raises(WhetError) as error:
        upload("me/model", items_of(folder), private=True, message="Up", wait=lambda seconds: None)
    assert error.value.code == "hub.offline" and "goes on from there" in error.value.hint
    assert hub.repositories["me/model"].commits == [["b.safetensors"]]
    assert "README.md" not in hub.names("me/model"), "no card tells of files that are not there"
    hub.faults, received = [], hub.received
    told = list[Event]()
    upload("me/model", items_of(folder), private=True, message="Up", tell=told.append)
    assert hub.received - received == 2_500_000 + len(WEIGHTS)
    assert next(event.path for event in told if isinstance(event, ExportEvent)) == "b.safetensors"
    assert hub.content("me/model", "c.safetensors") == b"c" * 2_500_000
    assert hub.repositories["me/model"].commits[-1][-1] == "model-q8_0.verdict.json"


STALLING = ("create", "PUT /storage", "/commit/main")


@pytest.mark.parametrize("where", STALLING)
def test_a_hub_that_stops_answering_is_not_waited_for(
    hub: StandIn, tmp_path: Path, where: str, waits: list[float]
) -> None:
    """It takes what is sent and says nothing; the same command goes on from there."""
    hub.faults = [Fault(where, None, stalls=True)]
    items, ours = items_of(export(tmp_path / "e")), list[float]()
    with pytest.raises(WhetError) as error:
        upload("me/model", items, private=True, message="Up", wait=ours.append, patience=0.2)
    assert error.value.code == "hub.stalled" and "goes on from there" in error.value.hint
    assert "nothing moved" in error.value.message and "\n" not in error.value.message
    assert ours == [] == waits, "no use to try again"
    upload("me/model", items, private=True, message="Up")
    assert hub.content("me/model", "model-q8_0.gguf") == WEIGHTS and "README.md" in hub.names("me/model")


def test_the_hubs_client_is_left_as_it_was(hub: StandIn, tmp_path: Path) -> None:
    before = {kind: list(hooks) for kind, hooks in get_session().event_hooks.items()}
    upload("me/model", items_of(export(tmp_path / "e")), private=True, message="Up")
    assert get_session().event_hooks == before


def items_of(folder: Path) -> list[Item]:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return [Item(name, folder / name) for name in names if not name.endswith(".partial")]


PASSING: dict[str, tuple[Fault, str]] = {
    "create": (Fault("POST /api/repos/create", 503), "ours"),
    "create, no answer": (Fault("POST /api/repos/create", None), "ours"),
    "look": (Fault("paths-info", 502), "ours"),
    "look, rate limit": (Fault("paths-info", 429, headers={"Retry-After": "7"}), "ours"),
    "preupload": (Fault("preupload", 500), "client"),
    "preupload, rate limit": (Fault("preupload", 429, headers={"Retry-After": "41"}), "client"),
    "batch": (Fault("objects/batch", 504), "client"),
    "part": (Fault("PUT /storage", 500, skip=1), "client"),
    "part, connection": (Fault("PUT /storage", None, skip=2), "client"),
    "completion": (Fault("POST /complete", 503), "client"),
    "verify": (Fault("POST /verify", 500), "client"),
    "commit": (Fault("/commit/main", 500), "ours"),
    "commit, no answer": (Fault("/commit/main", None), "ours"),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_waited_out(hub: StandIn, tmp_path: Path, name: str, waits: list[float]) -> None:
    fault, who = PASSING[name]
    hub.faults = [fault]
    ours: list[float] = []
    folder = export(tmp_path / "e")
    told = list[Event]()
    upload("me/model", items_of(folder), private=True, message="Up", tell=told.append, wait=ours.append)
    assert fault.times == 0, "the fault was met"
    assert ("again in" in "".join(str(event) for event in told)) == (who == "ours")
    assert hub.content("me/model", "model-q8_0.gguf") == WEIGHTS and "README.md" in hub.names("me/model")
    waited = ours if who == "ours" else waits
    assert len(waited) == 1
    if asked := fault.headers.get("Retry-After"):
        assert waited[0] >= float(asked)


LASTING: dict[str, tuple[Fault, str, str]] = {
    "token": (Fault(".", 401, "Invalid credentials", times=99), "hub.token", "HF_TOKEN"),
    "owner": (Fault("create|GET /api/models", 403, "No rights there", times=9), "hub.refused", "write"),
    "gone": (Fault("preupload", 404, "Not found", {"X-Error-Code": "RepoNotFound"}, 9), "hub.refused", ""),
    "storage": (Fault("/commit/", 403, "Private storage limit reached", times=9), "hub.full", "Storage"),
    "disk": (Fault("PUT /storage", 507, "Insufficient Storage", times=99), "hub.full", "goes on"),
    "unpaid": (Fault("PUT /storage", 402, "Payment required", times=99), "hub.full", "goes on"),
    "too large": (Fault("/commit/", 413, "Payload too large", times=9), "hub.full", "goes on"),
    "busy": (Fault("/commit/", 503, "Overloaded", times=99), "hub.busy", "goes on"),
    "limit": (Fault("paths-info", 429, "Too many", {"Retry-After": "4000"}, 99), "hub.busy", "in 4000 s"),
    "bytes": (Fault("POST /complete", 400, "the bytes differ", times=9), "hub.refused", ""),
    "dead": (Fault("PUT /storage", None, times=999), "hub.offline", "network"),
}  # fmt: skip


@pytest.mark.parametrize("name", LASTING)
def test_what_does_not_pass_is_told_with_what_to_do(hub: StandIn, tmp_path: Path, name: str) -> None:
    fault, code, hint = LASTING[name]
    hub.faults = [fault]
    ours: list[float] = []
    with pytest.raises(WhetError) as error:
        upload("me/model", items_of(export(tmp_path / "e")), private=True, message="Up", wait=ours.append)
    assert error.value.code == code and hint in error.value.hint
    assert fault.says in error.value.message and "\n" not in error.value.message
    if code in ("hub.token", "hub.refused", "hub.full") or "4000" in hint:
        assert ours == [], "no use to try again"


@pytest.mark.parametrize(("status", "code"), [(401, "hub.token"), (403, "hub.refused"), (404, "hub.refused")])
def test_what_xet_is_refused_is_told_too(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    """The hub's client uploads by Xet where it can, whose errors are of other kinds."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.faults = [Fault("xet-write-token", status, "No", times=99)]
    ours: list[float] = []
    with pytest.raises(WhetError) as error:
        upload("me/model", items_of(export(tmp_path / "e")), private=True, message="Up", wait=ours.append)
    assert (error.value.code, ours) == (code, []) and TOKEN not in error.value.message


@pytest.fixture
def xet(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Uploads go by Xet, to a storage that takes what is sent and says nothing; Xet gives up soon."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    settings = {"CLIENT_READ_TIMEOUT": "200ms", "CLIENT_RETRY_MAX_ATTEMPTS": "0", "CACHE": str(tmp_path)}
    for name, value in settings.items():
        monkeypatch.setenv(f"HF_XET_{name}", value)
    hub.faults = [Fault("/v1/", None, times=99, stalls=True)]
    abort_xet_session()  # the next one reads the settings
    yield hub
    abort_xet_session()


@pytest.mark.parametrize(("patience", "code", "tries"), [(0.1, "hub.stalled", 1), (300.0, "hub.offline", 4)])
def test_what_xet_gave_up_on_is_not_begun_again(
    xet: StandIn, tmp_path: Path, patience: float, code: str, tries: int
) -> None:
    """After longer than the watchdog's patience; a storage that is away at once may soon be back."""
    items, ours = items_of(export(tmp_path / "e")), list[float]()
    with pytest.raises(WhetError) as error:
        upload("me/model", items, private=True, message="Up", wait=ours.append, patience=patience)
    assert error.value.code == code and len(ours) == tries - 1
    assert ("HF_HUB_DISABLE_XET=1" in error.value.hint) == (code == "hub.stalled")
    assert ("s after the transfer began" in error.value.message) == (code == "hub.stalled")
    assert "goes on from there" in error.value.hint


def test_a_full_storage_is_told_by_name(hub: StandIn, tmp_path: Path) -> None:
    hub.quota = 1000
    with pytest.raises(WhetError, match="storage limit reached") as error:
        push_folder(export(tmp_path / "e"), "me/model")
    assert error.value.code == "hub.full" and "smaller types" in error.value.hint


@pytest.mark.parametrize(("repo", "code"), [("me//model", "hub.refused"), ("you/model", "hub.refused")])
def test_a_wrong_name_or_owner_is_told(hub: StandIn, tmp_path: Path, repo: str, code: str) -> None:
    with pytest.raises(WhetError) as error:
        push_folder(export(tmp_path / "e"), repo)
    assert error.value.code == code and repo in error.value.message


def test_a_token_that_may_only_read_is_told(hub: StandIn, tmp_path: Path) -> None:
    hub.readers = ("me",)
    hub.repositories["me/model"] = Repository(private=True)
    with pytest.raises(WhetError, match="rights") as error:
        push_folder(export(tmp_path / "e"), "me/model")
    assert error.value.code == "hub.refused" and "write access" in error.value.hint


def test_a_broken_card_is_refused_before_the_weights(hub: StandIn, tmp_path: Path) -> None:
    folder = export(tmp_path / "e")
    (folder / "README.md").write_text("---\ntags: [unclosed\n---\n")
    with pytest.raises(WhetError, match="metadata") as error:
        push_folder(folder, "me/model")
    assert error.value.code == "hub.card" and hub.seen == []


def test_the_endpoint_of_a_dead_hub_is_offline(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WhetError) as error:
        upload("me/m", items_of(export(tmp_path / "e")), private=True, message="", wait=lambda seconds: None)
    assert error.value.code == "hub.offline"


SECRETS = (TOKEN, SIGNATURE, "X-Amz-Signature")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(
            "PUT /storage",
            403,
            f"token {TOKEN} may not; see http://s3/o?X-Amz-Signature={SIGNATURE}",
            times=99,
        ),
        Fault("PUT /storage", 500, "", times=99),
        Fault("PUT /storage", None, times=99),
        Fault("/commit/", 400, f"Authorization: Bearer {TOKEN}", times=99),
        Fault("create|GET /api/models", 401, f"?token={TOKEN}", times=99),
    ],
    ids=["storage", "storage, 500", "storage, dead", "commit", "who"],
)
def test_no_secret_is_ever_said(
    hub: StandIn,
    tmp_path: Path,
    fault: Fault,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Not in the error, its traceback, the events, the log at its loudest, or on the screen."""
    hub.faults, told = [fault], list[Event]()
    caplog.set_level(logging.DEBUG)
    with pytest.raises(WhetError) as error:
        upload(
            "me/model", items_of(export(tmp_path / "e")), private=True, message="Up", tell=told.append,
            wait=lambda seconds: None,
        )  # fmt: skip
    printed = capfd.readouterr()
    said = "".join(traceback.format_exception(error.value)) + caplog.text + printed.out + printed.err
    said += error.value.message + error.value.hint + "".join(event.model_dump_json() for event in told)
    said += "".join(str(content) for content in hub.repositories.values())
    assert "hub." in error.value.code and not [secret for secret in SECRETS if secret in said]


def test_a_whole_upload_says_no_secret(
    hub: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = export(tmp_path / "e")
    caplog.set_level(logging.DEBUG)
    push_folder(folder, "me/model")
    printed = capfd.readouterr()
    sent = b"".join(hub.content("me/model", name) for name in hub.names("me/model"))
    said = caplog.text + printed.out + printed.err + sent.decode("latin-1")
    assert not [secret for secret in SECRETS if secret in said] and str(tmp_path) not in said
