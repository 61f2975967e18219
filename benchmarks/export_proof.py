"""What the export's proof measures, for docs/export.md: each family in each format, each type, each fault.

    OMP_NUM_THREADS=1 python -P benchmarks/export_proof.py              all parts, some 15 minutes
    OMP_NUM_THREADS=1 python -P benchmarks/export_proof.py formats llama gemma2

Parts: ``formats`` (families of the converter's registry, exported from a LoRA adapter as `whet export` does
it), ``types`` (healthy files of each GGUF type of the demo and a small model that learnt), ``embeddings``,
``faults`` (planted into the files, see tests/export/gguf_faults_planted.py), ``greedy`` (the demo's answers).
Each is written into benchmarks/results/export-proof.json once it is there; `make export-table` makes the
tables of it.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from export.gguf_faults_planted import FAULTS, HEALTHY_TYPES, GGUFFault, everywhere  # noqa: E402
from support.proven_models import DECODERS, EMBEDDING, ENCODERS, SHARED_HEAD, Proven, proven  # noqa: E402
from support.tiny_adapters import train_at_random  # noqa: E402
from support.tiny_models import build_tiny_model  # noqa: E402
from support.tuned_demo import (  # noqa: E402
    answers_of_llama_cpp,
    answers_of_transformers,
    held_out_prompts,
    tuned_demo,
)

from whet.engine.export.gguf.convert import convert  # noqa: E402
from whet.engine.export.gguf.importance import measure  # noqa: E402
from whet.engine.export.gguf.quantize import quantize  # noqa: E402
from whet.engine.export.gguf.types import GGUF_TYPES  # noqa: E402
from whet.engine.export.pipeline import export_model  # noqa: E402
from whet.engine.export.smoke import prove  # noqa: E402
from whet.engine.export.verdict import Proof, Verdict  # noqa: E402
from whet.engine.recipe import ExportSection  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "export-proof.json"
PACKAGES = ("torch", "transformers", "peft", "gguf", "llama-cpp-python", "sentence-transformers")
Row = dict[str, Any]

# Attention alone where the experts are no linear layers, which LoRA is for.
TARGETS = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "qwen3_moe": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


TRAINED = ("demo", "learnt")


def formats(names: list[str]) -> Iterator[Row]:
    """One export of each family with everything that `whet export` can write, and what its proofs say."""
    section = ExportSection(merged=True, merged_4bit=True, fp8=True, adapter_gguf=True, gguf=[*HEALTHY_TYPES])
    for family in names or DECODERS:
        with tempfile.TemporaryDirectory(prefix="whet-table-") as place:
            folder = Path(place)
            chosen: Any = family
            base = build_tiny_model(
                folder / "base", chosen, wide=True, tied=family in SHARED_HEAD, dtype="bfloat16"
            )
            extra = {"target_modules": TARGETS[family]} if family in TARGETS else {}
            adapter = train_at_random(base, folder / "adapter", **extra)
            result = export_model(adapter, base, folder / "out", section, lambda event: None, name=family)
            yield from (_format_row(family, verdict) for verdict in result.verdicts)


def _format_row(family: str, verdict: Verdict) -> Row:
    by_name = {proof.name: proof for proof in verdict.proofs}
    distance = next(by_name[name] for name in ("logits", "merge", "reload", "adapter") if name in by_name)
    return {
        "family": family,
        "format": _format(verdict),
        "kl": distance.evidence.get("judged", distance.evidence.get("mean")),
        "same_top": distance.evidence.get("same_top"),
        "ids": _ids(by_name.get("vocabulary")),
        "verdict": verdict.status,
        "warned": {proof.name: proof.summary for proof in verdict.proofs if proof.status != "pass"},
    }


def _format(verdict: Verdict) -> str:
    names = {"merged": "merged 16-bit", "nf4": "merged 4-bit", "fp8": "FP8", "adapter": "GGUF LoRA"}
    return names.get(verdict.file_type, f"GGUF {verdict.file_type}")


def _ids(vocabulary: Proof | None) -> list[int] | None:
    """Texts with the same ids, of how many."""
    if vocabulary is None:
        return None
    seen = vocabulary.evidence
    return [seen["texts"] - seen["differing"] - sum((seen.get("known") or {}).values()), seen["texts"]]


def embeddings(names: list[str]) -> Iterator[Row]:
    """Embedding models: all-MiniLM-L6-v2, whose weights are real, and a random one of each family."""
    for model in names or (f"{EMBEDDING}minilm", *ENCODERS):
        one = proven(model)
        for kind in HEALTHY_TYPES:
            verdict = prove(one.gguf(kind), one.baseline, keep=False)
            by_name = {proof.name: proof for proof in verdict.proofs}
            vectors, found = by_name["vectors"].evidence, by_name["neighbours"].evidence
            yield {
                "family": model.removeprefix(EMBEDDING),
                "model_type": json.loads((one.folder / "config.json").read_text())["model_type"],
                "format": f"GGUF {kind}",
                "cosine": [vectors["mean"], vectors["min"]],
                "gate": vectors["gate"],
                "neighbours": [found["same"], found["texts"]],
                "ids": _ids(by_name["vocabulary"]),
                "verdict": verdict.status,
            }


def types(names: list[str]) -> Iterator[Row]:
    """Healthy files of each type; those that need one get an importance matrix of the model's own rows."""
    for model in names or TRAINED:
        one = proven(model)
        importance = _importance(one)
        for kind in GGUF_TYPES.values():
            path = (
                quantize(one.gguf("f16"), importance.with_suffix(f".{kind.name}.gguf"), kind.name,
                         importance=importance).path
                if kind.needs_importance
                else one.gguf(kind.name)
            )  # fmt: skip
            verdict = prove(path, one.baseline, keep=False)
            by_name = {proof.name: proof for proof in verdict.proofs}
            logits = by_name["logits"].evidence
            weights = by_name["weights"].evidence["types"] if "weights" in by_name else {}
            yield {
                "model": model,
                "type": kind.name,
                "kl": logits["judged"],
                "same_top": logits["same_top"],
                "gate": logits["gate"],
                "tensors": {name: [entry["worst"], entry["block"]] for name, entry in weights.items()},
                "verdict": verdict.status,
                "failed": [proof.name for proof in verdict.failures()],
            }


def _importance(one: Proven) -> Path:
    rows, f16 = [row for row in one.baseline.facts["sequences"] if len(row) > 8], one.gguf("f16")
    return measure(one.folder, f16, rows, f16.with_suffix(".imatrix"), "probe texts")


def faults(names: list[str]) -> Iterator[Row]:
    """Each planted fault: the steps that failed, and how far beyond its gate the named one was."""
    for fault in [*FAULTS, *everywhere()]:
        if not names or fault.model in names:
            with tempfile.TemporaryDirectory(prefix="whet-fault-") as folder:
                yield _fault_row(fault, Path(folder))


def _fault_row(fault: GGUFFault, folder: Path) -> Row:
    row = {"name": fault.name, "model": fault.model, "caught_by": fault.caught_by}
    if fault.caught_by not in ("logits", "weights"):
        return row | {"failed": fault.failing(fault, folder), "times_gate": None}
    one = proven(fault.model)
    verdict = prove(fault.broken(one, folder), one.baseline, keep=False)
    proof = next(proof for proof in verdict.proofs if proof.name == fault.caught_by)
    if fault.caught_by == "logits":
        times = proof.evidence["mean"] / proof.evidence["gate"]
    else:
        times = proof.evidence["nearest"]["error"] / proof.evidence["nearest"]["gate"]
    finite = times if math.isfinite(times) else None
    return row | {"failed": [proof.name for proof in verdict.failures()], "times_gate": finite}


def greedy(names: list[str]) -> Iterator[Row]:
    """The demo's held-out questions, answered greedily by transformers and by llama-cpp-python's chat
    completion; of a merged model folder that is named (a run's ``export/merged``), or of a short training."""
    model = Path(names[0]) if names else tuned_demo()
    prompts = held_out_prompts()
    wanted = answers_of_transformers(model, prompts)
    with tempfile.TemporaryDirectory(prefix="whet-table-") as place:
        f16 = convert(model, Path(place) / "f16.gguf", "f16")
        for kind in HEALTHY_TYPES:
            file = f16 if kind == "f16" else quantize(f16, f16.with_name(f"{kind}.gguf"), kind).path
            given = answers_of_llama_cpp(file, prompts)
            same = sum(one == other for one, other in zip(given, wanted, strict=True))
            yield {"file": f"GGUF {kind}", "prompts": len(prompts), "same": same}


PARTS: dict[str, Callable[[list[str]], Iterator[Row]]] = {
    "formats": formats,
    "embeddings": embeddings,
    "types": types,
    "faults": faults,
    "greedy": greedy,
}


def keep(part: str, rows: list[Row], names: list[str]) -> None:
    """Put the rows into the results; those of models that were not measured this time stay."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    key = {"formats": "family", "embeddings": "family", "greedy": "file"}.get(part, "model")
    fresh = {row[key] for row in rows}
    stay = [row for row in known.get(part, {}).get("rows", ()) if names and row[key] not in fresh]
    known[part] = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU",
        "versions": {name: version(name) for name in PACKAGES},
        "rows": [*stay, *rows],
    }
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Measure the parts named, or all; names after a part limit it to these models."""
    parts, names = [one for one in arguments if one in PARTS], [one for one in arguments if one not in PARTS]
    for part in parts or PARTS:
        rows = []
        for row in PARTS[part](names):
            rows.append(row)
            print(part, json.dumps(row), flush=True)
        keep(part, rows, names)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
