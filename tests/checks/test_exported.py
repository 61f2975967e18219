"""From proofs and failures of an export to findings: the cause by name, and a way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from whet.engine.checks.exported import ExportFacts, failure_findings, run_export_checks
from whet.engine.errors import WhetError
from whet.engine.export.gguf.native import REBUILD
from whet.engine.export.merge_proof import judge_merge
from whet.engine.export.verdict import Proof, Verdict
from whet.engine.recipe import ExportSection
from whet.engine.runs.state import RunError

MEASURED: dict[str, Any] = {
    "mean": 2e-5, "max": 1e-4, "same_top": 1.0, "moved": 0.01, "rounding": [2e-5, 1e-4], "positions": 256,
    "computed_in": "float32", "dtype": "bfloat16", "rounded_base": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "pass"),
        ({"mean": 2e-4}, "fail"),  # ten times what rounding costs
        ({"max": 0.02}, "fail"),  # at one position
        ({"mean": float("nan")}, "fail"),
        ({"mean": float("inf"), "max": float("inf"), "columns": [400, 401]}, "fail"),
        ({"moved": 0.0}, "warn"),
        ({"moved": 2.5e-5}, "warn"),  # rounded away
        ({"computed_in": "bfloat16", "mean": 0.005, "max": 0.2}, "pass"),
        ({"computed_in": "bfloat16", "mean": 0.03}, "fail"),
        ({"rounding": None, "rounded_base": True, "mean": 0.01}, "pass"),
        (
            {"rounding": None, "rounded_base": True, "mean": 0.015, "moved": 0.004},
            "fail",
        ),  # nearer to the base
    ],
)
def test_a_merge_may_cost_what_rounding_costs(changes: dict[str, Any], status: str) -> None:
    assert judge_merge(MEASURED | changes).status == status


def verdict(kind: str, *failed: str, **evidence: Any) -> Verdict:
    names = ("vocabulary", "template", "bos", "stops", "configuration", "weights", "logits", "answers")
    proofs = [
        Proof(
            name=name,
            status="fail" if name in failed else "pass",
            summary=f"About {name}.",
            evidence=evidence if name in failed else {},
            fix=f"Mend {name}.",
        )
        for name in names
    ]
    return Verdict.of(proofs, Path(f"/x/m-{kind}.gguf"), file_type=kind)


@pytest.mark.parametrize(
    ("failed", "causes"),
    [
        (("vocabulary",), ["tokenizer"]),
        (("template", "answers"), ["chat template"]),
        (("bos", "answers"), ["BOS metadata"]),
        (("stops",), ["end tokens"]),
        (("configuration",), ["configuration"]),
        (("weights", "logits", "answers"), ["tensors", "weights"]),
        (("logits", "answers"), ["weights"]),
        (("answers",), ["answers"]),
        (("template", "logits"), ["chat template", "weights"]),
    ],
)
def test_the_cause_is_named_and_what_follows_from_it_is_not(
    failed: tuple[str, ...], causes: list[str]
) -> None:
    facts = ExportFacts("mine", ExportSection(gguf=["q8_0"]), verdicts=(verdict("q8_0", *failed),))
    found = run_export_checks(facts)
    assert [(one.id, one.severity, one.evidence["cause"]) for one in found] == [
        ("X03", "error", cause) for cause in causes
    ]
    assert found[0].fix is not None and found[0].fix.command == "whet export mine --gguf q8_0"


def test_one_finding_for_a_cause_that_several_files_share() -> None:
    both = (verdict("q8_0", "template"), verdict("q4_k_m", "template", "answers"))
    (finding,) = run_export_checks(ExportFacts(verdicts=both))
    assert finding.evidence["files"] == ["/x/m-q8_0.gguf", "/x/m-q4_k_m.gguf"]
    assert finding.fix is not None and finding.fix.command == "whet export RUN --gguf q8_0 --gguf q4_k_m"


@pytest.mark.parametrize(
    ("kind", "mean", "wanted"),
    [
        ("q4_k_m", 0.055, "q5_k_m"),
        ("q4_k_m", 0.08, "q6_k"),
        ("q3_k_s", 0.3, "q6_k"),
        ("q2_k", 5.0, "q8_0"),
        ("q8_0", 0.1, "f16"),
    ],
)
def test_a_type_that_loses_too_much_gives_way_to_one_that_should_pass(
    kind: str, mean: float, wanted: str
) -> None:
    lost = verdict(kind, "logits", against="f16", mean=mean)
    facts = ExportFacts(section=ExportSection(gguf=[kind, "f16"]), verdicts=(lost,))
    (finding,) = run_export_checks(facts)
    assert finding.evidence["cause"] == "quantisation" and finding.fix is not None
    assert finding.fix.patch == {"export.gguf": list(dict.fromkeys([wanted, "f16"]))}


def test_what_rounding_costs_beyond_the_gate_is_a_warning_with_a_larger_type() -> None:
    loss = {"against": "f16", "mean": 0.08, "gate": 0.05}
    proof = Proof(name="logits", status="warn", summary="Mean KL is 8e-2.", evidence=loss, fix="Larger.")
    lossy = Verdict.of([proof], Path("/x/m-q4_k_m.gguf"), file_type="q4_k_m")
    (finding,) = run_export_checks(ExportFacts(section=ExportSection(gguf=["q4_k_m"]), verdicts=(lossy,)))
    assert (finding.id, finding.severity) == ("X03", "warning") and finding.fix is not None
    assert finding.fix.patch == {"export.gguf": ["q6_k"]}


def test_a_wrong_f16_file_is_no_matter_of_quantisation() -> None:
    spoilt = verdict("q8_0", "logits", against="f16", mean=1e-4, f16={"mean": 0.4})
    (finding,) = run_export_checks(ExportFacts(verdicts=(spoilt,)))
    assert finding.evidence["cause"] == "weights" and finding.fix is not None and not finding.fix.patch


@pytest.mark.parametrize(
    ("failure", "id", "command"),
    [
        (WhetError("export.disk_full", "Full.", "Free some."), "X02", "whet export RUN --out"),
        (WhetError("gguf.native_crash", "SIGILL.", f"Rebuild portably: {REBUILD}"), "E05", REBUILD),
        (WhetError("gguf.native_crash", "SIGKILL.", "Memory: free some, or move."), "X02", ""),
        (WhetError("gguf.llama_cpp_missing", "None.", f"Install it: {REBUILD}"), "X04", REBUILD),
        (WhetError("gguf.unsupported", "Unknown.", "Export the adapter."), "X04", ""),
    ],
)
def test_an_export_that_broke_off_says_why(failure: WhetError, id: str, command: str) -> None:
    (finding,) = run_export_checks(ExportFacts(failure=failure))
    assert (finding.id, finding.severity) == (id, "error") and finding.fix is not None
    assert command in (finding.fix.command or "") and finding.fix.text


def test_other_failures_stay_errors() -> None:
    assert run_export_checks(ExportFacts(failure=WhetError("merge.unmatched", "No."))) == []
    assert list(failure_findings(RunError(code="train.not_finite", message="NaN."), "mine")) == []
    (full,) = failure_findings(RunError(code="run.disk_full", message="Full."), "mine")
    assert full.id == "X02" and full.fix is not None and full.fix.command == "whet resume mine"
