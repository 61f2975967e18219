"""From what both sides measured to proofs. Light and pure: dictionaries in, proofs out."""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from typing import Any

from .gguf.known_differences import explain
from .smoke_file_judge import configuration, weights
from .verdict import Proof, Status

# Mean KL divergence in nats that a file may have from its baseline: f32, f16 and bf16 from transformers, the
# others from the f16 file. docs/proof.md has what healthy files and planted faults measure: the tuned demo on
# its held-out rows stays below its gates, the mildest fault in a small f16 file is many gates away. Two-layer
# models of random or overfitted weights lose up to five gates at 4 bits, which LOSS_SLACK is for.
KL_GATES = {
    "f32": 1e-6,
    "f16": 1e-5,
    "bf16": 1e-3,
    "q8": 5e-3,
    "q6": 0.01,
    "q5": 0.02,
    "q4": 0.05,
    "iq4": 0.05,
    "q3": 0.15,
    "iq3": 0.15,
    "q2": 0.4,
    "iq2": 0.6,
    "iq1": 1.5,
}
ANSWER_GATE = 0.3
"""Nats of teacher-forced loss an answer may lose; wrong templates cost 0.6 to 3.5."""
WARN_SHARE = 0.75
"""Above this share of a gate a proof warns."""
LOSS_SLACK = 6.0
"""How many gates a file may be away whose tensors are known to be only rounded: small models lose much by it,
and between one gate and this the proof warns."""

Measured = dict[str, Any]


def gate_for(file_type: str) -> float:
    """The KL gate of a GGUF type: ``q5_k_m`` -> that of ``q5``."""
    return KL_GATES.get(file_type, KL_GATES.get(file_type.partition("_")[0], KL_GATES["q2"]))


def judge(reference: Measured, measured: Measured, file_type: str, *, against: str) -> list[Proof]:
    """All proofs whose stage was measured, in order. ``against`` names the logits' baseline in the
    evidence."""
    proofs = []
    if "vocabulary" in measured:
        proofs.append(vocabulary(reference, measured))
    if "template" in measured:
        proofs += [template(reference, measured), bos(reference, measured)]
    if "stops" in measured:
        proofs.append(stops(reference, measured))
    if "metadata" in measured and "load" in measured:
        proofs.append(configuration(reference, measured))
    if "weights" in measured:
        proofs.append(weights(measured))
    if "logits" in measured:
        rounded = "weights" in measured and proofs[-1].status == "pass"
        proofs.append(logits(reference, measured, file_type, against, rounded))
    if "greedy" in measured:
        proofs.append(answers(reference, measured))
    return proofs


def vocabulary(reference: Measured, measured: Measured) -> Proof:
    pairs = list(zip(reference["texts"], measured["vocabulary"], strict=True))
    differing = [(r, m) for r, m in pairs if r["ids"] != m["ids"]]
    # The corpus' odd texts may show what llama.cpp is known to do otherwise; the user's own are told.
    known = Counter(r["known"] for r, _ in differing if r["known"] and not r["own"])
    own = [(r, m) for r, m in differing if r["known"] and r["own"]]
    unknown = [(r, m) for r, m in differing if not r["known"]]
    n_vocab, rows = measured["load"]["n_vocab"], reference["vocabulary_size"]
    evidence: dict[str, Any] = {
        "texts": len(pairs),
        "differing": len(unknown) + len(own),
        "known_differences": dict(known),
        "tokens": [n_vocab, rows],
    }
    if n_vocab != rows:
        return Proof(
            name="vocabulary",
            status="fail",
            summary=f"The file has {n_vocab} tokens, the model's output {rows} rows.",
            evidence=evidence,
            fix="Convert again: the token list must be padded to the model's rows.",
        )
    if not unknown and not own:
        parts = ", ".join(f"{count} {name}" for name, count in known.items())
        note = f" Known to differ in llama.cpp, none of them yours: {parts}." if known else ""
        same = f"{len(pairs) - known.total()} of {len(pairs)} texts give the same ids."
        return _pass("vocabulary", same + note, evidence)
    r, m = min(unknown or own, key=lambda pair: len(pair[0]["text"]))
    text = r["text"]
    evidence["example"] = {"text": text[:200], "transformers": r["ids"][:40], "llama.cpp": m["ids"][:40]}
    if not unknown:
        return Proof(
            name="vocabulary",
            status="warn",
            summary=f"{len(own)} of your own texts differ: {explain(r['known'])}.",
            evidence=evidence,
            fix="llama.cpp cannot tokenise these as in training; docs/gguf.md says what it does to them.",
        )
    return Proof(
        name="vocabulary",
        status="fail",
        summary=f"{len(unknown)} of {len(pairs)} texts give other ids than in training: {text[:40]!r}.",
        evidence=evidence,
        fix="The pre-tokenizer or the merges in the file are wrong: convert again, and report the tokenizer.",
    )


def template(reference: Measured, measured: Measured) -> Proof:
    wanted, found = reference["template"], measured["template"]["source"]
    if wanted is None and found is None:
        return _pass(
            "template", "Neither the model nor the file has a chat template; both complete plain text.", {}
        )
    if found is None:
        return Proof(
            name="template",
            status="fail",
            summary="The file has no chat template; llama-cpp-python silently falls back to Llama 2's.",
            evidence={"fallback": measured["load"]["chat_format"]},
            fix="Convert again from a folder whose tokenizer has its chat template.",
        )
    if wanted is None:
        return Proof(
            name="template",
            status="fail",
            summary="The file has a chat template, the trained model has none.",
            fix="Convert again from the trained model's folder.",
        )
    return _compare_cases(reference, measured)


def _compare_cases(reference: Measured, measured: Measured) -> Proof:
    pairs = list(zip(reference["cases"], measured["template"]["cases"], strict=True))
    differing = [(r, m) for r, m in pairs if r.get("ids") != m.get("ids")]
    trained = reference["trained_ids"]
    evidence = {
        "cases": [case["name"] for case in reference["cases"]],
        "differing": [r["name"] for r, _ in differing],
        "trained_rows": trained,
        "refused_by_both": [r["name"] for r, m in pairs if "error" in r and "error" in m],
    }
    if differing:
        mine, theirs = differing[0]
        keys = ("text", "ids", "error")
        evidence["example"] = {
            "case": mine["name"],
            "transformers": {k: mine[k] for k in keys if k in mine},
            "llama.cpp": {k: theirs[k] for k in keys if k in theirs},
        }
        same_text = mine.get("text") is not None and mine.get("text") == theirs.get("text")
        return Proof(
            name="template",
            status="fail",
            summary=f"{len(differing)} of {len(pairs)} conversations give other ids than in training, "
            + ("though they render to the same text." if same_text else f"first: {mine['name']}."),
            evidence=evidence,
            fix="A special token of the template is plain text in the file's vocabulary: convert again."
            if same_text
            else "Put the trained template into the file: convert again from the trained model's folder.",
        )
    if reference.get("template_as_trained") is False and not trained["compared"]:
        return Proof(
            name="template",
            status="fail",
            summary="The chat template is not the one the model was trained with (its hash differs).",
            evidence=evidence,
            fix="Export with the tokenizer folder that training wrote.",
        )
    if trained["differing"]:
        dated = "strftime_now" in reference["template"]
        return Proof(
            name="template",
            status="warn" if dated else "fail",
            summary=f"{trained['differing']} of {trained['compared']} rows render to other ids than those "
            f"trained on{', for the template writes the date' if dated else ''}.",
            evidence=evidence,
            fix="Export with the template of the run (its tokenizer folder), not with another one.",
        )
    compared = f", and {trained['compared']} rows equal the ids trained on" if trained["compared"] else ""
    return _pass(
        "template", f"{len(pairs)} conversations give the same ids on both sides{compared}.", evidence
    )


def bos(reference: Measured, measured: Measured) -> Proof:
    token = reference["bos"]
    plain = [
        (r["text"], r["special"], m["special"])
        for r, m in zip(reference["texts"], measured["vocabulary"], strict=True)
        if r["ids"] == m["ids"] and r["special"] != m["special"]
    ]
    cases = zip(reference["cases"], measured["template"]["cases"], strict=False)
    chats = [
        (r["name"], _leading(r["ids"], token), _leading(m["ids"], token))
        for r, m in cases
        if "ids" in r and "ids" in m
    ]
    evidence: dict[str, Any] = {
        "bos": token,
        "chat": [pair[2] for pair in chats],
        "texts_differing": len(plain),
    }
    doubled = [name for name, _, given in chats if given > 1]
    if doubled:
        return Proof(
            name="bos",
            status="fail",
            summary=f"The chat prompt begins with {max(given for _, _, given in chats)} BOS tokens.",
            evidence=evidence,
            fix="Let the template write BOS once; training must have seen one as well.",
        )
    if any(wanted != given for _, wanted, given in chats):
        return Proof(
            name="bos",
            status="fail",
            summary="The chat prompt has another number of BOS tokens than in training.",
            evidence=evidence | {"trained": [wanted for _, wanted, _ in chats]},
            fix="Convert again with the trained template.",
        )
    if plain:
        text, wanted, given = plain[0]
        evidence["example"] = {"text": text[:100], "transformers": wanted[:20], "llama.cpp": given[:20]}
        more = len(given) > len(wanted)
        return Proof(
            name="bos",
            status="fail",
            summary="For plain text llama.cpp "
            + ("adds special tokens that transformers does not add" if more else "lacks special tokens")
            + " (tokenizer.ggml.add_bos_token, add_eos_token).",
            evidence=evidence,
            fix="Convert again: both flags must follow the trained tokenizer.",
        )
    per_chat = f"{chats[0][2]} in chat" if chats else "no chat"
    return _pass("bos", f"BOS as trained: {per_chat}, the same ids for plain text.", evidence)


def _leading(ids: list[int], token: int | None) -> int:
    count = 0
    while token is not None and count < len(ids) and ids[count] == token:
        count += 1
    return count


def stops(reference: Measured, measured: Measured) -> Proof:
    ends = set(measured["stops"]["end_of_generation"])
    trained = {row["trained_end"] for row in reference["rows"] if row["trained_end"] is not None}
    special = {int(i) for i in reference["names"]}
    turn = {*reference["end_of_turn"], *(trained & special)} or {reference["eos"]} - {None}
    missing, other = (
        sorted(turn - ends),
        sorted({reference["eos"], *reference["generation_eos"]} - ends - {None}),
    )
    names = reference["names"]
    evidence: dict[str, Any] = {
        "end_of_turn": {str(i): names.get(str(i), "") for i in sorted(turn)},
        "end_of_generation": {str(i): names.get(str(i), "") for i in sorted(ends)[:20]},
        "eos": [measured["stops"]["eos"], reference["eos"]],
        "missing": missing,
    }
    if missing:
        named = ", ".join(f"{names.get(str(i), '')} ({i})" for i in missing)
        return Proof(
            name="stops",
            status="fail",
            summary=f"The model was trained to end its turn with {named}, at which llama.cpp does not stop.",
            evidence=evidence,
            fix="Set tokenizer.ggml.eot_token_id (or eos_token_id) to it: convert again.",
        )
    if not turn:
        return Proof(
            name="stops",
            status="warn",
            summary="No end-of-turn token is known, so generation may not stop.",
            evidence=evidence,
            fix="Train with a template that ends each answer with a special token.",
        )
    if other:
        return Proof(
            name="stops",
            status="warn",
            summary=f"generation_config.json also ends at {other}, llama.cpp does not.",
            evidence=evidence,
            fix="Harmless if the model never writes these tokens; otherwise add them as stop strings.",
        )
    return _pass("stops", f"llama.cpp stops at {' and '.join(evidence['end_of_turn'].values())}.", evidence)


def logits(
    reference: Measured, measured: Measured, file_type: str, against: str, only_rounded: bool = False
) -> Proof:
    """``only_rounded``: each tensor was found to be the f16 file's but for rounding, so that a divergence
    beyond the gate is a loss and no fault."""
    found = measured["logits"]
    evidence: dict[str, Any] = {"against": against, "reference": reference["dtype"], **found}
    if (fault := _incomparable(reference, evidence)) is not None:
        return fault
    gate = gate_for(file_type)
    if against == "transformers" and reference["dtype"] != "float32":
        gate = max(gate, KL_GATES["bf16"])
    mixture = "expert_count" in reference["values"]
    mean = found["typical" if mixture else "mean"]
    most = gate * (LOSS_SLACK if only_rounded else 1)
    evidence |= {"judged": mean, "gate": gate, "most": most}
    summary = (
        f"Mean KL from {against} is {mean:.1e} nat over {found['positions']} positions"
        f"{' (without the 2% where experts change)' if mixture else ''} (gate {gate:.0e})."
    )
    larger = "Use a larger type such as q6_k or q8_0: rounding costs this model much."
    if not found["finite"] or mean > most:
        wrong = "A tensor differs from the trained one: convert again, and report it with this evidence."
        fix = larger if against == "f16" else wrong
        return Proof(name="logits", status="fail", summary=summary, evidence=evidence, fix=fix)
    if mean > gate:
        return Proof(name="logits", status="warn", summary=summary, evidence=evidence, fix=larger)
    status: Status = "warn" if mean > WARN_SHARE * gate else "pass"
    near = "" if status == "pass" else "Near the gate."
    return Proof(name="logits", status=status, summary=summary, evidence=evidence, fix=near)


def _incomparable(reference: Measured, evidence: dict[str, Any]) -> Proof | None:
    """What is wrong before any distribution is looked at: its shape, or the file compared with."""
    source = reference.get("f16_logits")
    if "columns" in evidence:
        return Proof(
            name="logits",
            status="fail",
            summary=f"The file predicts {evidence['columns']} tokens, the model "
            f"{evidence['expected_columns']}.",
            evidence=evidence,
            fix="Convert again: the embedding's rows must be kept.",
        )
    if evidence["against"] == "f16" and source is not None and source["status"] == "fail":
        return Proof(
            name="logits",
            status="fail",
            summary=f"The f16 file that this one is held against is itself wrong: {source['summary']}",
            evidence=evidence | {"f16": source["evidence"]},
            fix=source["fix"],
        )
    return None


def answers(reference: Measured, measured: Measured) -> Proof:
    lost = [given - wanted for wanted, given in zip(reference["answers"], measured["answers"], strict=True)]
    greedy = list(zip(reference["greedy"], measured["greedy"], strict=True))
    stopped = [sum(r["stopped"] for r, _ in greedy), sum(m["stopped"] for _, m in greedy)]
    evidence: dict[str, Any] = {
        "held_out": len(lost),
        "loss": [_mean(reference["answers"]), _mean(measured["answers"])],
        "stopped": {"transformers": stopped[0], "llama.cpp": stopped[1], "of": len(greedy)},
        "samples": [{"transformers": r["text"], "llama.cpp": m["text"]} for r, m in greedy[:3]],
    }
    mean = _mean(lost)
    nats = f"{mean:+.3f} nat on {len(lost)} held-out answers" if lost else "no held-out answers to compare"
    stop = f"{stopped[1]} of {len(greedy)} greedy answers stop ({stopped[0]} with transformers)"
    if mean > ANSWER_GATE:
        return Proof(
            name="answers",
            status="fail",
            summary=f"Held-out answers cost {nats} more than with transformers (gate {ANSWER_GATE}); {stop}.",
            evidence=evidence,
            fix="See the template and logits proofs; if both pass, use a larger type.",
        )
    if stopped[1] < 0.5 * stopped[0] and stopped[0] - stopped[1] > 1:  # one may end by chance
        return Proof(
            name="answers",
            status="fail",
            summary=f"Answers run on: {stop}.",
            evidence=evidence,
            fix="See the stops proof; if it passes, use a larger type.",
        )
    # An answer ends; a text, of which all but the first token is learnt, goes on.
    asked = any(len(prompt["ids"]) > 1 for prompt in reference["greedy"])
    if (asked and stopped[0] == 0) or stopped[1] < stopped[0]:
        return Proof(
            name="answers",
            status="warn",
            summary=f"{nats}; {stop}, within the budget.",
            evidence=evidence,
            fix="Train longer, or on answers that end with the end-of-turn token." if stopped[0] == 0 else "",
        )
    return _pass("answers", f"{nats}; {stop}.", evidence)


def _mean(values: list[float]) -> float:
    return fmean(values) if values else 0.0


def _pass(name: str, summary: str, evidence: dict[str, Any]) -> Proof:
    return Proof(name=name, status="pass", summary=summary, evidence=evidence)
