"""From what both sides measured of an embedding model to five proofs. Light and pure.

Ids first, then the special tokens around a text, configuration, vectors from the same ids, and at last what a
search would find from the file's own ids.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from .embedding_metadata import wrong_values
from .smoke_file_judge import weights
from .verdict import Proof, Status

Measured = dict[str, Any]

# Least mean and least single cosine between the model's vectors and the file's. Healthy files and faults
# measured on the real MiniLM, docs/embedding_export.md: f16 is 1e-6 away, the smallest fault 7e-4.
COSINE_GATES: dict[str, tuple[float, float]] = {
    "f32": (0.99995, 0.9998),
    "f16": (0.99995, 0.9998),
    "bf16": (0.9995, 0.999),
    "q8": (0.998, 0.99),
    "q6": (0.99, 0.96),
    "q5": (0.98, 0.93),
    "q4": (0.93, 0.7),
    "iq4": (0.93, 0.7),
    "q3": (0.88, 0.7),
    "iq3": (0.88, 0.7),
    "q2": (0.7, 0.4),
}
LENGTH_GATE = {"f32": 0.002, "f16": 0.002, "bf16": 0.01}
"""Most relative difference of a vector's length before any normalisation; quantised files: 0.25."""
QUANTISED_LENGTH_GATE = 0.25
LOST_GATES = {"f32": 0.001, "f16": 0.001, "bf16": 0.002, "q8": 0.005}
"""Most mean similarity that the nearest neighbours found may lose; smaller types: 0.03."""
QUANTISED_LOST_GATE = 0.03
WARN_SHARE = 0.75
"""Above this share of what a gate leaves, a proof warns."""
WARN_BELOW = 0.98
"""Share of texts with the same nearest neighbour below which a proof warns."""


def _gate(table: dict[str, Any], file_type: str, otherwise: Any) -> Any:
    """``q5_k_m`` -> the entry of ``q5``."""
    return table.get(file_type, table.get(file_type.partition("_")[0], otherwise))


def judge_embedding(reference: Measured, measured: Measured, file_type: str) -> list[Proof]:
    """All proofs whose stage was measured, in order."""
    proofs = []
    if "vocabulary" in measured:
        proofs += [vocabulary(reference, measured), special_tokens(reference, measured)]
    if "load" in measured:
        proofs.append(configuration(reference, measured))
    if "weights" in measured:
        proofs.append(weights(measured))
    if "vectors" in measured:
        proofs.append(vectors(reference, measured, file_type))
    if "neighbours" in measured:
        proofs.append(neighbours(measured, file_type))
    return proofs


def vocabulary(reference: Measured, measured: Measured) -> Proof:
    """Ids of the probe corpus, special tokens written as text among it; known differences are counted."""
    pairs = list(zip(reference["texts"], measured["vocabulary"], strict=True))
    differing = [(r, m) for r, m in pairs if r["ids"] != m["ids"]]
    faults = [(r["text"], r["ids"], m["ids"]) for r, m in differing if r["known"] is None]
    tokens = [measured["load"]["n_vocab"], reference["vocabulary_size"]]
    evidence: dict[str, Any] = {
        "texts": len(pairs),
        "differing": len(faults),
        "known": dict(Counter(r["known"] for r, _ in differing if r["known"] is not None)),
        "tokens": tokens,
    }
    if tokens[0] != tokens[1]:
        summary = f"The file has {tokens[0]} tokens, the model's embedding {tokens[1]} rows."
        return _proof("vocabulary", "fail", summary, evidence, "Convert again from the trained folder.")
    if faults:
        text, wanted, given = min(faults, key=lambda item: len(item[0]))
        evidence["example"] = {"text": text[:200], "transformers": wanted[:40], "llama.cpp": given[:40]}
        summary = f"{len(faults)} of {len(pairs)} texts give other ids than in training: {text[:40]!r}."
        return _proof(
            "vocabulary", "fail", summary, evidence, "Convert again; if it stays, report the tokenizer."
        )
    known = ", ".join(f"{name} ({count})" for name, count in evidence["known"].items())
    tail = f" Known differences of llama.cpp: {known}." if known else ""
    summary = f"{len(pairs) - len(differing)} of {len(pairs)} texts give the same ids.{tail}"
    return _proof("vocabulary", "pass", summary, evidence)


def special_tokens(reference: Measured, measured: Measured) -> Proof:
    """What is put around a text: CLS and SEP, BOS and EOS, or the end of text that is pooled."""
    pairs = [
        (r["text"], r["special"], m["special"])
        for r, m in zip(reference["texts"], measured["vocabulary"], strict=True)
        if r["ids"] == m["ids"]
    ]
    differing = [pair for pair in pairs if pair[1] != pair[2]]
    names = reference["names"]
    empty: list[int] = next((r["special"] for r in reference["texts"] if not r["ids"]), [])
    evidence: dict[str, Any] = {
        "texts": len(pairs),
        "differing": len(differing),
        "around": [names.get(str(id), str(id)) for id in empty],
    }
    if not differing:
        return _proof("special tokens", "pass", "Both sides put the same tokens around a text.", evidence)
    text, wanted, given = min(differing, key=lambda pair: len(pair[1]))
    evidence["example"] = {"text": text[:100], "transformers": wanted[:20], "llama.cpp": given[:20]}
    return _proof(
        "special tokens",
        "fail",
        f"llama.cpp puts other tokens around a text than training did: {given[:12]} for {wanted[:12]}.",
        evidence,
        "Convert again: add_bos_token, add_eos_token and the ids of CLS, SEP, EOS must follow the tokenizer.",
    )


def configuration(reference: Measured, measured: Measured) -> Proof:
    """Every value of config.json and modules.json that llama.cpp computes with."""
    wanted = reference["values"]
    wrong = wrong_values(measured["metadata"], wanted)
    evidence = {"values": len(wanted), "wrong": wrong}
    if not wrong:
        summary = f"{len(wanted)} values as in training, pooling {reference['pooling']!r} among them."
        return _proof("configuration", "pass", summary, evidence)
    key, (has, wants) = next(iter(wrong.items()))
    return _proof(
        "configuration",
        "fail",
        f"{key} is {has} in the file, the model was trained with {wants}.",
        evidence,
        "Convert again from the trained model's folder.",
    )


def vectors(reference: Measured, measured: Measured, file_type: str) -> Proof:
    """The weights: cosine and length of each vector, from the ids that the reference saw."""
    found = measured["vectors"]
    evidence: dict[str, Any] = {
        "reference": reference["dtype"],
        "normalised": reference["normalize"],
        **found,
    }
    if not found["pooled"]:
        return _proof(
            "vectors",
            "fail",
            "The file pools nothing: llama.cpp gives a vector a token, and clients take the last or none.",
            evidence,
            "Convert again from a folder with modules.json, so that pooling_type is written.",
        )
    if "width" in found:
        return _proof(
            "vectors",
            "fail",
            f"The file's vectors have {found['width']} numbers, the model's {found['expected_width']}.",
            evidence,
            "Convert again: the dense layers behind the pooling are missing or wrong.",
        )
    direct = reference["dtype"] == "float32"
    mean_gate, least_gate = _gate(
        COSINE_GATES, file_type if direct else _coarser(file_type), COSINE_GATES["q2"]
    )
    length_gate = _gate(LENGTH_GATE, file_type if direct else _coarser(file_type), QUANTISED_LENGTH_GATE)
    apart = max(abs(ratio - 1) for ratio in found["length"])
    evidence |= {"gate": [mean_gate, least_gate], "length_gate": length_gate}
    summary = (
        f"Mean cosine {found['mean']:.6f}, least {found['min']:.6f} over {found['texts']} texts of up to "
        f"{found['longest']} tokens (gates {mean_gate} and {least_gate}); lengths within {apart:.1%}."
    )
    source = reference.get("f16_vectors")
    if source is not None and source["status"] == "fail" and file_type not in LENGTH_GATE:
        return _proof(
            "vectors",
            "fail",
            f"The f16 file that this one is made from is itself wrong: {source['summary']}",
            evidence | {"f16": source["evidence"]},
            source["fix"],
        )
    if not found["finite"] or found["mean"] < mean_gate or found["min"] < least_gate or apart > length_gate:
        fix = "A tensor, the pooling or the positions differ from the trained ones: convert again, report it."
        if file_type not in LENGTH_GATE:
            fix = "Use f16 or q8_0: embedding models lose most by quantisation."
        return _proof("vectors", "fail", summary, evidence, fix)
    if 1 - found["mean"] > WARN_SHARE * (1 - mean_gate):
        return _proof("vectors", "warn", summary, evidence, "Near the gate: a larger type is safer.")
    return _proof("vectors", "pass", summary, evidence)


def _coarser(file_type: str) -> str:
    """The gates that hold against a reference in bfloat16."""
    return "bf16" if file_type in LENGTH_GATE else file_type


def neighbours(measured: Measured, file_type: str) -> Proof:
    """Retrieval: whose nearest text is another one, and how much nearer the right one is."""
    found = measured["neighbours"]
    if not found["pooled"]:
        return _proof(
            "neighbours", "fail", "Without pooled vectors nothing can be searched.", found, "See vectors."
        )
    gate = _gate(LOST_GATES, file_type, QUANTISED_LOST_GATE)
    share = found["same"] / found["texts"]
    evidence = {**found, "gate": gate}
    summary = (
        f"{found['same']} of {found['texts']} texts have the same nearest text; "
        f"{found['lost_mean']:.4f} of similarity is lost on average (gate {gate})."
    )
    if found["lost_mean"] > gate:
        fix = "See the other proofs; if they pass, use f16 or q8_0."
        return _proof("neighbours", "fail", summary, evidence, fix)
    if share < WARN_BELOW and found["lost_max"] > gate:
        return _proof("neighbours", "warn", summary, evidence, "A larger type finds the same neighbours.")
    return _proof("neighbours", "pass", summary, evidence)


def _proof(name: str, status: Status, summary: str, evidence: dict[str, Any], fix: str = "") -> Proof:
    return Proof(name=name, status=status, summary=summary, evidence=evidence, fix=fix)
