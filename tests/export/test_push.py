"""Parts of a run's export go up with cards that tell the truth, by API and by command line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command_line import start_whet
from support.fake_runs import until
from support.hub_standin import TOKEN, Fault, StandIn, card_errors, in_place_of_the_hub, serve
from support.tiny_runs import create_run, tiny_recipe, write_chat_rows

from whet.engine import api
from whet.engine.demo import MODEL_DIR
from whet.engine.errors import WhetError
from whet.engine.export.artifacts import list_artifacts
from whet.engine.export.hub import push_folder, push_part
from whet.engine.export.model_card import facts_of, write_card
from whet.engine.export.verdict import Proof, Status, Verdict, fingerprint, save_verdict
from whet.engine.findings import Finding
from whet.engine.runs.events import EventLog, FindingEvent
from whet.engine.runs.store import RunDir

TYPES = ("f16", "q4_k_m", "q8_0")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A finished run: its adapter, merged weights and three proven GGUF files, as an export leaves them."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    made = create_run(tiny_recipe(Path(MODEL_DIR), write_chat_rows(tmp_path / "rows.jsonl")))
    made.write_state(status="finished", launched=1.0, summary={"eval_loss": 1.25, "steps": 6})
    adapter = made.export / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"adapter" * 100)
    config = {"peft_type": "LORA", "base_model_name_or_path": str(MODEL_DIR), "r": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (made.export / "merged").mkdir()
    (made.export / "merged" / "model.safetensors").write_bytes(b"merged" * 100)
    (made.export / "merged" / "config.json").write_text("{}")
    (made.export / ".merged-for-gguf").mkdir()
    (made.export / ".merged-for-gguf" / "model.safetensors").write_bytes(b"half")
    (made.export / "Modelfile").write_text("FROM ./tiny-q4_k_m.gguf\n")
    verdicts = [prove(made, kind) for kind in TYPES]
    files = {Path(verdict.gguf).name: 404 for verdict in verdicts}
    write_card(made.export, facts_of(made), verdicts, (), files)
    (made.export / "merged" / "whet_merge.json").write_text(json.dumps({"path": str(made.export)}))
    finding = Finding(id="X01", severity="note", title="The rounding is left out.")
    EventLog(made.events, 1).append(FindingEvent(finding=finding))
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with in_place_of_the_hub(StandIn(), monkeypatch) as hub:
        yield hub


def prove(run: RunDir, kind: str, status: Status = "pass") -> Verdict:
    gguf = run.export / f"tiny-{kind}.gguf"
    gguf.write_bytes(b"GGUF" + kind.encode() * 100)
    proof = Proof(name="logits", status=status, summary=f"KL of {kind}, {status}.")
    verdict = Verdict.of([proof], gguf, file_type=kind, fingerprint=fingerprint(gguf))
    save_verdict(verdict, gguf)
    return verdict


def card_of(hub: StandIn) -> str:
    text = hub.content("me/model", "README.md").decode()
    assert card_errors(text) == []
    return text


def test_an_export_has_parts(run: RunDir) -> None:
    kinds = [one.kind for one in list_artifacts(run.export)]
    assert kinds == ["adapter", "merged", "modelfile", "card", "gguf", "gguf", "gguf"]


def test_all_ggufs_share_a_repository_and_a_card(run: RunDir, hub: StandIn) -> None:
    assert push_part(run, "gguf", "me/model") == f"{hub.url}/me/model"
    ggufs = [f"tiny-{kind}{end}" for kind in TYPES for end in (".gguf", ".verdict.json")]
    assert hub.names("me/model") == ["Modelfile", "README.md", *ggufs]
    card = card_of(hub)
    assert "- The rounding is left out." in card and "library_name: gguf" in card
    assert "`adapter`" not in card and "`merged`" not in card, "they are not in this repository"
    assert all(f"**`tiny-{kind}.gguf`: pass**" in card for kind in TYPES)
    facts = ("held-out loss at the end", "1.25", "rank: 4", "train: rows.jsonl", "data digest `")
    assert all(fact in card for fact in facts) and str(MODEL_DIR) not in card


def test_another_quantisation_later_joins_them(run: RunDir, hub: StandIn) -> None:
    push_part(run, "gguf", "me/model")
    prove(run, "q5_k_m")
    received = hub.received
    push_part(run, "gguf", "me/model")
    assert "tiny-q5_k_m.gguf" in hub.names("me/model")
    assert hub.received - received == len((run.export / "tiny-q5_k_m.gguf").read_bytes())
    assert "**`tiny-q5_k_m.gguf`: pass**" in card_of(hub)


def test_a_card_does_not_claim_what_is_no_longer_true(run: RunDir, hub: StandIn) -> None:
    prove(run, "q4_k_m", "fail")
    with pytest.raises(WhetError) as error:
        push_part(run, "gguf", "me/model")
    assert error.value.code == "hub.unproven" and "--unproven" in error.value.hint and hub.seen == []
    push_part(run, "gguf", "me/model", force=True)
    card = card_of(hub)
    assert "**`tiny-q4_k_m.gguf`: fail**" in card and "KL of q4_k_m, fail." in card


@pytest.mark.parametrize(("part", "library"), [("adapter", "peft"), ("merged", "transformers")])
def test_other_parts_get_a_card_of_their_own(run: RunDir, hub: StandIn, part: Any, library: str) -> None:
    push_part(run, part, "me/model")
    card = card_of(hub)
    assert f"library_name: {library}" in card and "rank: 4" in card and "data digest" in card
    assert not [name for name in hub.names("me/model") if name.endswith(".gguf")]
    sent = [hub.content("me/model", name) for name in hub.names("me/model")]
    assert not [data for data in sent if str(run.path).encode() in data or str(MODEL_DIR).encode() in data]
    assert not (run.export / part / "README.md").exists(), "a push writes nothing into the run"
    if part == "adapter":
        config = json.loads(hub.content("me/model", "adapter_config.json"))
        assert config["base_model_name_or_path"] == MODEL_DIR.name and config["r"] == 4


@pytest.mark.parametrize("part", ["fp8", "merged_4bit", "adapter_gguf"])
def test_few_bits_and_gguf_adapters_are_parts_too(run: RunDir, hub: StandIn, part: Any) -> None:
    folder = run.export / part.replace("_", "-")
    folder.mkdir()
    weights = folder / ("lora.gguf" if part == "adapter_gguf" else "model.safetensors")
    weights.write_bytes(part.encode() * 50)
    proof = Proof(name="reload", status="pass", summary="It reloads.")
    proven = weights if part == "adapter_gguf" else folder
    verdict = Verdict.of([proof], proven, file_type=part, fingerprint=fingerprint(proven))
    save_verdict(verdict, proven)
    push_part(run, part, "me/model")
    own = ["lora.gguf", "lora.verdict.json"] if part == "adapter_gguf" else ["model.safetensors"]
    assert hub.names("me/model") == ["README.md", *own]
    card = card_of(hub)
    assert f"**`{proven.name}`: pass**" in card and "It reloads." in card
    assert ("library_name: gguf" in card) == (part == "adapter_gguf")
    push_part(run, "gguf", "me/other")
    assert not [name for name in hub.names("me/other") if name.startswith(part[:5])]


def test_a_folder_without_a_card_gets_one_from_its_files(run: RunDir, hub: StandIn) -> None:
    push_folder(run.export / "adapter", "me/model")
    card = card_of(hub)
    assert "library_name: peft" in card and "| `adapter_model.safetensors` | 0.7 kB |" in card
    assert f"Fine-tuned from `{MODEL_DIR.name}`" in card and str(MODEL_DIR) not in card


def test_a_part_that_is_not_there_stays(run: RunDir, hub: StandIn) -> None:
    (run.export / "adapter" / "adapter_model.safetensors").unlink()
    (run.export / "adapter" / "adapter_config.json").unlink()
    (run.export / "adapter").rmdir()
    with pytest.raises(WhetError) as error:
        push_part(run, "adapter", "me/model")
    assert error.value.code == "hub.nothing" and hub.seen == []


def test_wrong_merged_weights_stay(run: RunDir, hub: StandIn) -> None:
    merged = run.export / "merged"
    proof = Proof(name="merge", status="fail", summary="Four times too far.")
    verdict = Verdict.of([proof], merged, file_type="merged", fingerprint=fingerprint(merged))
    save_verdict(verdict, merged)
    with pytest.raises(WhetError, match="Four times") as error:
        api.push(run.id, "me/model", "merged")
    assert error.value.code == "hub.unproven" and hub.seen == []


def start_push(run: RunDir, hub: StandIn, *words: str, token: str | None = TOKEN) -> subprocess.Popen[str]:
    """`whet push` as a user's shell starts it, which knows the stand-in by HF_ENDPOINT alone."""
    home = str(run.path.parents[1])
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"WHET_HOME": home, "HF_HOME": f"{home}/hf", "HF_ENDPOINT": hub.url}
    environment |= {"HF_HUB_DISABLE_XET": "1", "COLUMNS": "200"} | ({"HF_TOKEN": token} if token else {})
    return start_whet("push", run.id, "me/model", *words, env=environment, stderr=subprocess.PIPE)


def whet(run: RunDir, hub: StandIn, *words: str, token: str | None = TOKEN) -> tuple[int, str, str]:
    """:func:`start_push`, and its exit code and words."""
    with start_push(run, hub, *words, token=token) as process:
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_a_killed_upload_goes_on(run: RunDir) -> None:
    """Killed while one file hangs and the others have arrived: only that one is sent again."""
    with serve(StandIn(faults=[Fault("PUT /storage", None, skip=2, stalls=True)])) as hub:
        with start_push(run, hub) as process:
            try:
                until(lambda: (len(hub.storage), hub.puts()) == (2, 3), "two files, the third begun", 60.0)
            finally:
                process.kill()  # it waits for the hub, and the hub for the end of this test
        assert hub.repositories["me/model"].commits == []
        arrived = {hashlib.sha256(data).hexdigest() for data in hub.storage.values()}
        received = hub.received
        code, _, _ = whet(run, hub)
        late = [path for path in run.export.glob("*.gguf") if file_hash(path) not in arrived]
        assert code == 0 and len(late) == 1 and hub.received - received == late[0].stat().st_size
        assert hub.content("me/model", late[0].name) == late[0].read_bytes()


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_command_line_pushes_and_goes_on(run: RunDir) -> None:
    with serve(StandIn(faults=[Fault("/commit/main", 403, "not now")])) as hub:
        code, out, err = whet(run, hub)
        assert code == 1 and "not now" in err and out == "" and TOKEN not in err
        received = hub.received
        code, out, err = whet(run, hub)
        assert code == 0 and out == f"{hub.url}/me/model\n" and "uploaded tiny-q8_0.gguf" in err
        assert received > 0 and hub.received == received, "what arrived before the refusal is not sent again"
        assert hub.repositories["me/model"].private
        code, out, _ = whet(run, hub, "--json")
    *events, end = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and end == {"type": "end", "repo": "me/model", "address": f"{hub.url}/me/model"}
    assert {event["detail"]["how"] for event in events} == {"present"}


def test_the_command_line_refuses_as_it_should(run: RunDir) -> None:
    prove(run, "q4_k_m", "fail")
    with serve(StandIn()) as hub:
        code, out, _ = whet(run, hub, "--json")
        assert code == 1 and json.loads(out)["error"]["code"] == "hub.unproven" and hub.seen == []
        code, out, _ = whet(run, hub, "--what", "adapter", "--json", token=None)
        assert code == 1 and json.loads(out)["error"]["code"] == "hub.no_token"
        code, out, _ = whet(run, hub, "--unproven", "--public")
        assert code == 0 and not hub.repositories["me/model"].private
