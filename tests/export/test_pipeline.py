"""An export says what it did: events while it runs, and a card that is true. No llama.cpp here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from support.tiny_models import build_tiny_model

from whet.engine.errors import WhetError
from whet.engine.export.adapter_weights import Adapter
from whet.engine.export.hub import unproven
from whet.engine.export.model_card import CardFacts, write_card
from whet.engine.export.pipeline import export_model
from whet.engine.export.verdict import Proof, Verdict, load_verdict
from whet.engine.findings import Finding
from whet.engine.recipe import ExportSection
from whet.engine.runs.events import Event, ExportEvent, FindingEvent


def write_adapter(base: Path, out: Path, trained: bool = True) -> Path:
    """One that moves the model, or PEFT's fresh one, which changes nothing."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=trained is False)
    )
    tuned.save_pretrained(str(out))
    return out


def export(
    adapter: Path, base: Path, out: Path, trained_precision: str | None = None
) -> tuple[list[Event], list[Finding]]:
    events: list[Event] = []
    section = ExportSection(merged=True)
    export_model(adapter, base, out, section, events.append, trained_precision=trained_precision)
    return events, [event.finding for event in events if isinstance(event, FindingEvent)]


def test_a_plain_merge_has_nothing_to_confess(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base")
    events, findings = export(write_adapter(base, tmp_path / "adapter"), base, tmp_path / "out")
    assert findings == []
    exports = [event for event in events if isinstance(event, ExportEvent)]
    assert [event.kind for event in exports] == ["merged", "smoke", "card"]
    proof = exports[1].detail["proofs"][0]
    assert proof["status"] == "pass" and 0 < proof["evidence"]["mean"] < proof["evidence"]["moved"] / 10
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Notes" not in card and "**`merged`: pass**" in card
    assert load_verdict(tmp_path / "out" / "merged") is not None


def test_a_later_export_leaves_an_earlier_ones_files(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter")
    for name in ("f16", "bf16"):
        section = ExportSection(gguf=[name], smoke_test=False)
        export_model(adapter, base, tmp_path / "out", section, lambda event: None, name="tiny")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"tiny-f16.gguf", "tiny-bf16.gguf", "Modelfile", "README.md"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "tiny-f16.gguf" in card and "tiny-bf16.gguf" in card


def test_an_adapter_that_changes_nothing_is_said(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base")
    _, findings = export(write_adapter(base, tmp_path / "adapter", trained=False), base, tmp_path / "out")
    assert [(one.id, one.severity) for one in findings] == [("X01", "warning")]
    assert "changes nothing" in findings[0].title


def test_nothing_is_made_of_a_wrong_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The merge forgets the adapter: no GGUF, no Modelfile, a failed verdict, and no upload."""
    base = build_tiny_model(tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter")
    monkeypatch.setattr(Adapter, "apply", lambda self, name, rows, start=0: rows)
    events: list[Event] = []
    result = export_model(
        adapter, base, tmp_path / "out", ExportSection(merged=True, gguf=["f16"]), events.append
    )
    assert result.status == "fail" and set(result.paths) == {"merged", "card"}
    findings = [event.finding for event in events if isinstance(event, FindingEvent)]
    assert [(one.id, one.severity) for one in findings] == [("X01", "error")]
    assert findings[0].title in (tmp_path / "out" / "README.md").read_text()
    assert [name for name, _ in unproven(tmp_path / "out")] == ["merged"]


def test_a_full_disk_at_save_is_a_finding(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    base = build_tiny_model(tmp_path / "base")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".tiny-f16.gguf.{os.getpid()}.partial").symlink_to("/dev/full")
    events: list[Event] = []
    section = ExportSection(gguf=["f16"])
    with pytest.raises(WhetError) as caught:
        export_model(base, None, tmp_path / "out", section, events.append, name="tiny")
    assert caught.value.code == "export.disk_full"
    findings = [event.finding for event in events if isinstance(event, FindingEvent)]
    assert [(one.id, one.severity) for one in findings] == [("X02", "error")]
    assert findings[0].fix is not None and "whet export" in (findings[0].fix.command or "")


def test_training_over_rounded_weights_is_said_aloud(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base")
    _, findings = export(write_adapter(base, tmp_path / "adapter"), base, tmp_path / "out", "nf4")
    assert [(one.id, one.severity) for one in findings] == [("X01", "note")]
    assert "nf4" in findings[0].title and "16-bit" in findings[0].title
    assert findings[0].title in (tmp_path / "out" / "README.md").read_text()


def test_a_base_that_stays_rounded_is_a_warning(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    base = build_tiny_model(tmp_path / "base", wide=True)
    adapter = write_adapter(base, tmp_path / "adapter")
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    held = AutoModelForCausalLM.from_pretrained(base, quantization_config=bits)
    held.save_pretrained(tmp_path / "rounded")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "rounded")
    _, findings = export(adapter, tmp_path / "rounded", tmp_path / "out", "nf4")
    assert [(one.id, one.severity) for one in findings] == [("X01", "warning")]
    assert "dequantised" in findings[0].title and "rounding error stays" in findings[0].title
    assert findings[0].title in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_without_its_base_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(build_tiny_model(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(WhetError) as caught:
        export_model(adapter, None, tmp_path / "out", ExportSection(merged=True), lambda event: None)
    assert caught.value.code == "export.no_base"


def test_the_card_names_base_data_measures_and_verdict(tmp_path: Path) -> None:
    proof = Proof(name="logits", status="fail", summary="Mean KL is 3 | too much.")
    verdict = Verdict.of([proof], tmp_path / "m-q4_k_m.gguf")
    facts = CardFacts(
        base_model="some-org/some-model",
        revision="abc123",
        recipe={"model": {"name": "some-org/some-model"}, "data": {"train": "/home/me/secret/chats.jsonl"}},
        data_digest="d1g35t",
        rows=1200,
        held_out_rows=60,
        metrics={"eval_loss": 0.51234, "early_stopped": False},
        run="mine-1",
    )
    card = write_card(tmp_path, facts, [verdict], ["A note."], {"m-q4_k_m.gguf": 2_500_000, "Modelfile": 414})
    text = card.read_text()
    assert "base_model: some-org/some-model\n" in text and "`some-org/some-model` (revision `abc123`)" in text
    assert "trained on 1,200 rows; 60 were held out" in text and "`d1g35t`" in text
    assert "| held-out loss at the end, nats a token | 0.5123 |" in text and "| stopped early | no |" in text
    assert "**`m-q4_k_m.gguf`: fail**" in text and "Mean KL is 3 \\| too much." in text
    assert "| `m-q4_k_m.gguf` | 2.5 MB |" in text and "| `Modelfile` | 0.4 kB |" in text
    assert "- A note." in text and "train: chats.jsonl" in text and "secret" not in text


@pytest.mark.parametrize("name", ["demo", "/home/me/models/mine"])
def test_a_local_base_is_no_hub_id(tmp_path: Path, name: str) -> None:
    text = write_card(tmp_path, CardFacts(base_model=name)).read_text()
    assert "base_model:" not in text and "/home" not in text
    assert (
        f"Fine-tuned from `{Path(name).name}`" in text and "No GGUF file of this export was proven." in text
    )
