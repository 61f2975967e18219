"""One export writes the targets that are asked for, proves them, and tells of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_adapters import train_at_random
from support.tiny_models import build_tiny_model

from whet.engine.checks.exported import ExportFacts, run_export_checks
from whet.engine.errors import WhetError
from whet.engine.export.artifacts import list_artifacts
from whet.engine.export.hub import unproven
from whet.engine.export.pipeline import export_model
from whet.engine.export.targets.adapter_proof import judge_adapter
from whet.engine.export.targets.reload_proof import judge_reload
from whet.engine.export.verdict import Verdict, load_verdict
from whet.engine.recipe import ExportSection
from whet.engine.runs.events import Event, ExportEvent


@pytest.mark.slow  # 20 to 30 seconds: `make slow`
def test_all_targets_of_one_export(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base", "llama", wide=True, dtype="bfloat16")
    adapter = train_at_random(base, tmp_path / "adapter")
    section = ExportSection(merged_4bit=True, fp8=True, adapter_gguf=True)
    events: list[Event] = []
    result = export_model(adapter, base, tmp_path / "out", section, events.append, name="tiny")
    written = {path.relative_to(tmp_path / "out").as_posix() for path in result.paths.values()}
    assert written == {"merged-4bit", "fp8", "adapter-gguf/tiny-lora.gguf", "README.md"}
    assert [verdict.proofs[0].name for verdict in result.verdicts] == ["adapter", "merge", "reload", "reload"]
    assert result.status in ("pass", "warn")  # rounding a random model may cost more than usual
    kinds = [event.kind for event in events if isinstance(event, ExportEvent)]
    assert kinds == ["adapter_gguf", "smoke", "smoke", "merged_4bit", "smoke", "fp8", "smoke", "card"]

    artifacts = {one.kind: one for one in list_artifacts(tmp_path / "out")}
    assert set(artifacts) == {"merged_4bit", "fp8", "adapter_gguf", "card"}
    assert all(one.verdict is not None for kind, one in artifacts.items() if kind != "card")
    assert unproven(tmp_path / "out") == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"`{name}`" in card for name in ("merged-4bit", "fp8", "tiny-lora.gguf"))
    assert "those in 4 and 8 bits with the merged ones" in card
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"merged-4bit", "fp8", "adapter-gguf", "README.md"} | {
        f"{name}.verdict.json" for name in ("merged-4bit", "fp8")
    }
    assert load_verdict(result.paths["adapter_gguf"]) is not None


def test_an_adapter_file_of_a_whole_model_is_refused(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "model")
    section = ExportSection(adapter_gguf=True)
    with pytest.raises(WhetError, match="whole model") as refusal:
        export_model(model, None, tmp_path / "out", section, lambda event: None)
    assert refusal.value.code == "export.adapter_gguf"


def test_what_a_proof_sees_is_a_finding(tmp_path: Path) -> None:
    wrong = judge_reload({"wrong": ["a.weight"], "mean": 3.0}, "fp8")
    little = judge_adapter({"mean": 1e-6, "max": 1e-5, "moved": 1e-6, "positions": 9})
    verdicts = (Verdict.of([wrong], tmp_path / "fp8"), Verdict.of([little], tmp_path / "a.gguf"))
    findings = run_export_checks(ExportFacts("run", verdicts=verdicts))
    assert [(one.id, one.severity) for one in findings] == [("X01", "error"), ("X01", "warning")]
    assert "a.weight" in findings[0].title
    assert findings[0].fix is not None and "whet export RUN --fp8" in findings[0].fix.text
