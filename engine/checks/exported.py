"""Export, seen at its end: merged weights, proofs of GGUF files, Modelfile, and why one broke off."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WhetError
from ..export.gguf.native import REBUILD
from ..export.gguf.types import GGUF_TYPES
from ..export.smoke_judge import gate_for
from ..export.verdict import Proof, Verdict
from ..findings import Finding, Fix, Severity
from ..recipe import ExportSection
from .registry import Check, check, worst_first

if TYPE_CHECKING:
    from ..export.merge_report import MergeReport
    from ..export.modelfile_check import ModelfileFacts
    from ..runs.state import RunError

DISK_FULL = ("export.disk_full", "run.disk_full")
TOOL_MISSING = ("gguf.unsupported", "gguf.llama_cpp_missing", "gguf.needs_importance_matrix")
CRASH, HANG, ABORT = "gguf.native_crash", "gguf.native_hang", "gguf.native_abort"
USUAL_TYPES = ("q4_k_m", "q5_k_m", "q6_k", "q8_0")
GAIN_PER_BIT = 3.7
"""A two-layer model measured 4.0 from q3_k_s to q6_k."""

# Proof of the smoke test -> what of the file is wrong, and how that shows.
CAUSES = {
    "llama.cpp": ("file", "llama.cpp cannot run it"),
    "vocabulary": ("tokenizer", "text becomes other tokens than in training"),
    "template": ("chat template", "conversations are written differently than in training"),
    "bos": ("BOS metadata", "prompts begin with other special tokens than in training"),
    "stops": ("end tokens", "llama.cpp does not stop where the model was trained to"),
    "configuration": ("configuration", "llama.cpp computes with other values than training"),
    "weights": ("tensors", "they are not those of the f16 file"),
    "logits": ("weights", "it predicts other tokens than the trained model"),
    "answers": ("answers", "it answers worse than the trained model"),
    "special tokens": ("special tokens", "other tokens stand around a text than in training"),
    "vectors": ("vectors", "its vectors are not the trained model's"),
    "neighbours": ("neighbours", "a search finds other texts than with the trained model"),
}


@dataclass(frozen=True)
class ExportFacts:
    """What an export did, or how far it came.

    Args:
        target: the run or folder that was exported, as `whet export` takes it.
        section: what was asked for.
        merge: of the adapter into its base; None where nothing was merged.
        verdicts: of merged folder and GGUF files.
        fallbacks: GGUF type -> tensors to which llama.cpp gave another one.
        modelfile: what was written, or stands there.
        remarks: what a file of this kind cannot say by itself.
        failure: what ended it early.
    """

    target: str = "RUN"
    section: ExportSection = field(default_factory=ExportSection)
    merge: MergeReport | None = None
    verdicts: tuple[Verdict, ...] = ()
    fallbacks: dict[str, int] = field(default_factory=dict)
    modelfile: ModelfileFacts | None = None
    remarks: tuple[str, ...] = ()
    failure: WhetError | None = None

    def command(self, *words: str) -> str:
        """`whet export` of the same thing."""
        return shlex.join(["whet", "export", self.target, *words])


@check("export", "X01")
def merge_notes(facts: ExportFacts) -> Iterator[Finding]:
    """What the merge says of its base: a warning where the merged weights keep a rounding error."""
    if facts.merge is None:
        return
    severity: Severity = "warning" if facts.merge.dequantised else "note"
    for note in facts.merge.notes:
        yield Finding(
            id="X01",
            severity=severity,
            title=note,
            evidence={"dtype": facts.merge.dtype, "changed_tensors": facts.merge.changed},
            fix=Fix(text="Name the 16-bit original as model.name, and export again.")
            if facts.merge.dequantised
            else None,
        )


@check("export", "X01")
def merged_differs(facts: ExportFacts) -> Iterator[Finding]:
    """The merged model against base and adapter; a failed proof keeps GGUF files from being made of it."""
    for verdict in facts.verdicts:
        for proof in verdict.proofs:
            if proof.name != "merge" or proof.status == "pass":
                continue
            failed = proof.status == "fail"
            yield Finding(
                id="X01",
                severity="error" if failed else "warning",
                title=("The merged model is not the trained one. " if failed else "") + proof.summary,
                evidence={"folder": verdict.gguf, **proof.evidence},
                fix=Fix(
                    text="Merge again from this run's base and adapter; if it stays, report the evidence."
                    if failed
                    else "Train longer or with a higher learning_rate: the adapter learnt too little.",
                    command=facts.command("--merged") if failed else None,
                ),
            )


@check("export", "X01")
def target_differs(facts: ExportFacts) -> Iterator[Finding]:
    """Weights in 4 or 8 bits against the merged ones, and an adapter's GGUF against PEFT."""
    for verdict in facts.verdicts:
        for proof in verdict.proofs:
            if proof.name in ("reload", "adapter") and proof.status != "pass":
                yield Finding(
                    id="X01",
                    severity="error" if proof.status == "fail" else "warning",
                    title=f"{verdict.gguf.rsplit('/', 1)[-1]}: {proof.summary}",
                    evidence={"written": verdict.gguf, **proof.evidence},
                    fix=Fix(text=proof.fix),
                )


@check("export", "X03", "E05", "X02")
def gguf_differs(facts: ExportFacts) -> Iterator[Finding]:
    """One finding for each thing that is wrong, over all files that have it."""
    by_cause: dict[str, list[tuple[Verdict, Proof]]] = {}
    for verdict in facts.verdicts:
        for proof in _roots(verdict):
            by_cause.setdefault(proof.name, []).append((verdict, proof))
    for name, found in by_cause.items():
        verdict, proof = found[0]
        if proof.evidence.get("code") in (CRASH, HANG):
            yield _crash(proof.summary, proof.fix, {"file": verdict.gguf, **proof.evidence})
            continue
        cause, shows = CAUSES[name]
        if _by_rounding(verdict, proof):
            cause = "quantisation"
        yield Finding(
            id="X03",
            severity="error",
            title=f"{_names(found)}: {cause} wrong, {shows}. {proof.summary}",
            evidence={
                "cause": cause,
                "files": [one.gguf for one, _ in found],
                "failed": [proof.name for proof in verdict.failures()],
                **proof.evidence,
            },
            fix=_larger(facts, found) if cause == "quantisation" else _again(facts, found),
        )


@check("export", "X03")
def rounded_much(facts: ExportFacts) -> Iterator[Finding]:
    """Types whose tensors are right and whose rounding costs this model more than most."""
    found = [
        (verdict, proof)
        for verdict in facts.verdicts
        for proof in verdict.proofs
        if proof.name == "logits"
        and proof.status == "warn"
        and proof.evidence["against"] == "f16"
        and proof.evidence["mean"] > proof.evidence["gate"]
    ]
    if found:
        yield Finding(
            id="X03",
            severity="warning",
            title=f"{_names(found)}: rounding costs this model more than most. {found[0][1].summary}",
            evidence={
                "cause": "quantisation",
                "files": [verdict.gguf for verdict, _ in found],
                **found[0][1].evidence,
            },
            fix=_larger(facts, found),
        )


def _roots(verdict: Verdict) -> Iterator[Proof]:
    """Failed proofs of a GGUF without those that only follow from another one."""
    failed = [proof for proof in verdict.failures() if proof.name in CAUSES]
    for proof in failed:
        if proof.name not in ("answers", "neighbours") or len(failed) == 1:
            yield proof


def _by_rounding(verdict: Verdict, proof: Proof) -> bool:
    """Whether the type alone is to blame: the f16 file that it was made from is right."""
    if "f16" in proof.evidence:
        return False
    if proof.name == "logits":
        return proof.evidence.get("against") == "f16"
    rounded = verdict.file_type not in ("f32", "f16", "bf16")
    return proof.name == "vectors" and rounded and bool(proof.evidence.get("pooled"))


def _names(found: list[tuple[Verdict, Proof]]) -> str:
    return ", ".join(verdict.gguf.rsplit("/", 1)[-1] for verdict, _ in found)


def _again(facts: ExportFacts, found: list[tuple[Verdict, Proof]]) -> Fix:
    """The proof's own advice, and the command that writes the files anew."""
    types = [verdict.file_type for verdict, _ in found if verdict.file_type]
    words = [word for kind in types or facts.section.gguf for word in ("--gguf", kind)]
    return Fix(text=found[0][1].fix or "Convert again.", command=facts.command(*words) if words else None)


def _larger(facts: ExportFacts, found: list[tuple[Verdict, Proof]]) -> Fix:
    """Types that should pass instead of each that lost too much."""
    lossy = {verdict.file_type: _enough(verdict.file_type, proof.evidence) for verdict, proof in found}
    asked = facts.section.gguf or sorted(lossy)
    wanted = list(dict.fromkeys(lossy.get(kind, kind) for kind in asked))
    return Fix(
        text=f"Export {', '.join(wanted)} instead of {', '.join(sorted(lossy))}, which loses too much.",
        patch={"export.gguf": wanted},
        command=facts.command(*(word for kind in wanted for word in ("--gguf", kind))),
    )


def _enough(kind: str, measured: dict[str, Any]) -> str:
    """The smallest usual type that should stay below its gate, judged by what this one measured.

    Rounding errors halve with each bit, and the KL divergence goes with their square; a little less is
    counted on here.
    """
    bits, mean = GGUF_TYPES[kind].bits_per_weight, measured["mean"]
    if "normalised" in measured:  # of vectors, whose mean is a cosine
        return "q8_0" if bits < GGUF_TYPES["q8_0"].bits_per_weight else "f16"
    for one in USUAL_TYPES:
        more = GGUF_TYPES[one].bits_per_weight - bits
        if more > 0.5 and mean * GAIN_PER_BIT**-more < gate_for(one):
            return one
    return "f16"


def _crash(words: str, hint: str, evidence: dict[str, Any]) -> Finding:
    """llama.cpp died or hung: a build for another CPU, too little memory (X02), or what its log says."""
    if REBUILD not in hint:
        id = "X02" if evidence["code"] == CRASH else "E05"
        return Finding(id=id, severity="error", title=words, evidence=evidence, fix=Fix(text=hint))
    text = "Build llama.cpp again without instructions that this machine only claims to have."
    return Finding(
        id="E05", severity="error", title=words, evidence=evidence, fix=Fix(text=text, command=REBUILD)
    )


@check("export", "X03")
def other_types(facts: ExportFacts) -> Iterator[Finding]:
    """Tensors whose rows do not divide into a type's blocks get another one."""
    for kind, count in facts.fallbacks.items():
        yield Finding(
            id="X03",
            severity="note",
            title=f"{kind}: {count} tensors got another type: their rows do not divide by 256.",
            evidence={"type": kind, "tensors": count},
        )


@check("export", "X03")
def remarks(facts: ExportFacts) -> Iterator[Finding]:
    """What the files' readers must do themselves: an embedding model's prompts, its vectors' length."""
    for remark in facts.remarks:
        yield Finding(id="X03", severity="note", title=remark)


@check("export", "X05")
def modelfile(facts: ExportFacts) -> Iterator[Finding]:
    """What Ollama would do with the Modelfile, against tokenizer and chat template."""
    found = facts.modelfile
    if found is None:
        return
    for note in found.notes:
        yield Finding(id="X05", severity="note", title=note)
    # a run's own export is where the command looks anyway
    beside = found.path is not None and Path(facts.target).is_absolute()
    place = ("--out", str(found.path.parent)) if beside and found.path else ()
    again = Fix(text="Write the Modelfile anew.", command=facts.command("--modelfile", *place))
    where = {"file": str(found.path)}
    if found.missing_source:
        yield Finding(
            id="X05",
            severity="error",
            title=f"The Modelfile is FROM {found.missing_source}, which is not there: Ollama stops at that.",
            evidence=where | {"from": found.missing_source},
            fix=again,
        )
    if found.difference is not None:
        yield Finding(
            id="X05",
            severity="error",
            title="The Modelfile's TEMPLATE gives another prompt than the one the model was trained with.",
            evidence=where | found.difference,
            fix=again,
        )
    missing = [end for end in found.ends if end not in found.stops]
    if missing:
        yield Finding(
            id="X05",
            severity="warning",
            title=f"The Modelfile does not stop at {' and '.join(missing)}, so answers run on.",
            evidence=where | {"stops": list(found.stops), "ends": list(found.ends)},
            fix=again,
        )
    if found.headers:
        yield Finding(
            id="X05",
            severity="warning",
            title=f"The Modelfile stops at {' and '.join(found.headers)}, which the template writes within a "
            "conversation: answers may be cut or come out empty.",
            evidence=where | {"stops": list(found.stops), "ends": list(found.ends)},
            fix=again,
        )


@check("export", "X02", "X04", "E05")
def broke_off(facts: ExportFacts) -> Iterator[Finding]:
    """An export that ended early: a full disk, a tool that is missing or crashed; others keep their error."""
    failure = facts.failure
    if failure is None:
        return
    evidence = {"code": failure.code, "message": failure.message}
    if failure.code in DISK_FULL:
        yield _disk_full(failure, facts.command("--out", "/path/on/a/larger/disk"))
    elif failure.code in TOOL_MISSING:
        text, _, command = failure.hint.partition(": ")
        yield Finding(
            id="X04",
            severity="error",
            title=failure.message,
            evidence=evidence,
            fix=Fix(text=text, command=command or None, patch={} if command else {"export.gguf": []}),
        )
    elif failure.code in (CRASH, HANG, ABORT):
        yield _crash(failure.message, failure.hint, evidence)


def failure_findings(error: RunError, run: str) -> Iterator[Finding]:
    """X02 of a run that died of a full disk, at a checkpoint or at the end."""
    if error.code in DISK_FULL:
        yield _disk_full(WhetError(error.code, error.message, error.hint), f"whet resume {run}")


def _disk_full(failure: WhetError, command: str) -> Finding:
    text = "Free some space, or write to a larger disk, then go on: finished checkpoints are untouched."
    evidence = {"code": failure.code, "advice": failure.hint}
    return Finding(
        id="X02",
        severity="error",
        title=failure.message,
        evidence=evidence,
        fix=Fix(text=text, command=command),
    )


EXPORT_CHECKS: tuple[Check[ExportFacts], ...] = (
    merge_notes,
    merged_differs,
    target_differs,
    gguf_differs,
    rounded_much,
    other_types,
    remarks,
    modelfile,
    broke_off,
)


def run_export_checks(facts: ExportFacts) -> list[Finding]:
    """All findings about an export, worst first."""
    return worst_first(finding for check in EXPORT_CHECKS for finding in check.run(facts))
