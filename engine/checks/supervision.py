"""Supervision: does every row teach what it should, and does the model learn where to begin and to stop?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..data.inspection import SplitReport
from ..findings import Finding, Fix, Severity
from .registry import PlanFacts, check, share
from .template import other_template, repaired, spelt_out, template_name

TOLERATED = 0.01
"""Up to this share of odd rows is a note: real data is never quite clean."""

HARDLY_ANY = 0.01
MOST = 0.5
"""Of the rows; whoever loses more has other data than was meant, and mends it."""


def grade(part: int, whole: int) -> Severity:
    """Warning, or a note where few rows are concerned."""
    return "warning" if share(part, whole) > TOLERATED else "note"


def dropping(facts: PlanFacts, kind: str, rows: int) -> dict[str, Any]:
    """The patch that leaves such rows out too; none where more than half of the data would go."""
    most = share(rows, facts.report.train.rows) > MOST
    return {} if most else {"data.drop": [*facts.recipe.data.drop, kind]}


@check("data", "D01")
def nothing_supervised(facts: PlanFacts) -> Iterator[Finding]:
    """Loss exactly 0: no row, some rows, or hardly any token carries a label."""
    train = facts.report.train
    masked = train.unsupervised_rows - train.truncated_lost_all
    evidence: dict[str, Any] = {
        "rows": train.rows,
        "rows_without_supervised_tokens": train.unsupervised_rows,
        "supervised_tokens": train.supervised_tokens,
        "tokens": train.tokens,
        "template": template_name(facts),
        "examples": train.places("unsupervised_rows"),
    }
    everything = Fix(
        text="Train on all tokens, or use a template whose assistant turns match these rows.",
        patch={"method.supervise": "all"} if facts.report.supervise == "responses" else {},
    )
    if train.rows and not train.supervised_tokens and masked:
        fix = repaired(facts, "D01", "Take the generation tags out: whet then derives the answers' places.")
        yield Finding(
            id="D01",
            severity="error",
            title="No row has a supervised token.",
            evidence=evidence,
            fix=fix or everything,
        )
        return
    if masked > 0:
        yield Finding(
            id="D01",
            severity=grade(masked, train.rows),
            title=f"{masked} of {train.rows} rows have no supervised token and are left out.",
            evidence=evidence,
            fix=Fix(
                text="Give each of these rows a reply of the assistant, or leave them out knowingly.",
                patch=dropping(facts, "empty", masked),
            ),
        )
    if train.supervised_tokens and share(train.supervised_tokens, train.tokens) < HARDLY_ANY:
        yield Finding(
            id="D01",
            severity="warning",
            title="Fewer than 1 % of the tokens are supervised.",
            evidence=evidence,
            fix=everything,
        )


@check("data", "D02", "D03")
def truncated_answers(facts: PlanFacts) -> Iterator[Finding]:
    """Rows cut at max_length that lost all of their answer, or its end."""
    train = facts.report.train
    evidence = {
        "max_length": facts.resolved.max_length,
        "length": train.length.model_dump(),
        "rows": train.rows,
    }
    if lost := train.truncated_lost_all:
        yield Finding(
            id="D02",
            severity="error" if lost == train.rows else grade(lost, train.rows),
            title=f"{lost} of {train.rows} rows lose their whole answer to the cut at max_length.",
            evidence={**evidence, "rows_lost": lost, "examples": train.places("truncated_lost_all")},
            fix=_room(facts, train),
        )
    if lost := train.truncated_lost_end:
        yield Finding(
            id="D03",
            severity=grade(lost, train.rows),
            title=f"{lost} of {train.rows} answers are cut before their end: the model never sees them stop.",
            evidence={**evidence, "rows_cut": lost, "examples": train.places("truncated_lost_end")},
            fix=_room(facts, train),
        )


def _room(facts: PlanFacts, train: SplitReport) -> Fix:
    """A max_length that takes the longest row, or the model's limit; beyond that only leaving rows out."""
    length = train.length
    wanted = min(length.max, facts.model.max_positions or length.max)
    seen = (
        f"half of the rows have up to {length.p50} tokens, 95 % up to {length.p95}, 99 % up to {length.p99}"
    )
    if wanted > facts.resolved.max_length:
        text = f"Raise model.max_length to {wanted} ({seen}), or leave long rows out with data.drop=[cut]."
        return Fix(text=text, patch={"model.max_length": wanted})
    if train.truncated_rows == train.rows:
        return Fix(text=f"Split the rows: all are longer than the model's {wanted} positions ({seen}).")
    return Fix(
        text=f"Shorten the long rows, or leave them out: max_length is the model's longest ({seen}).",
        patch=dropping(facts, "cut", train.truncated_rows),
    )


@check("data", "D05", "D06")
def begin_token(facts: PlanFacts) -> Iterator[Finding]:
    """Two BOS tokens in a row, or none where the tokenizer itself would write one."""
    report, train = facts.report, facts.report.train
    if double := train.double_bos:
        yield Finding(
            id="D05",
            severity="error" if share(double, train.rows) > 0.5 else "warning",
            title=f"{double} of {train.rows} rows begin with two BOS tokens.",
            evidence={
                "rows": double,
                "bos": report.bos_token,
                "template": template_name(facts),
                "examples": train.places("double_bos"),
            },
            fix=_one_bos(facts, double),
        )
    # Models such as Qwen have no BOS; the report only counts rows where the tokenizer's own rule is broken.
    missing = train.missing_bos
    if share(missing, train.rows) > 0.5 and not spelt_out(facts):
        fix = repaired(facts, "D06", f"Have the template write {report.bos_token} once, at the beginning.")
        # A published model's own template is what it was trained with, whatever its tokenizer would add.
        yield Finding(
            id="D06",
            severity="note" if report.template == "model" else "warning",
            title=f"{missing} of {train.rows} rows lack the BOS token this model was trained with.",
            evidence={"rows": missing, "bos": report.bos_token, "template": template_name(facts)},
            fix=fix or Fix(text="Use a template that writes bos_token first."),
        )


def _one_bos(facts: PlanFacts, double: int) -> Fix:
    """The template writes it twice, or the rows bring one along."""
    report = facts.report
    literal = report.train.special_in_text.get(report.bos_token or "", 0)
    if facts.chat and literal < double:
        text = "Use a template that writes bos_token once; special tokens are added nowhere else."
        return other_template(facts, text)
    text = f"Remove the literal {report.bos_token} from the rows: it is written anyway."
    return Fix(text=text, patch=dropping(facts, "markers", double) if facts.chat else {})


@check("data", "D07", "D17")
def end_token(facts: PlanFacts) -> Iterator[Finding]:
    """The model learns to stop only from a supervised end token, once."""
    report, train = facts.report, facts.report.train
    evidence = {"rows": train.rows, "end_of_turn": report.end_of_turn, "template": template_name(facts)}
    # A template of another family spells its end token out; that is D13's to say.
    if (endless := train.without_end_token) and not spelt_out(facts):
        everywhere = share(endless, train.rows) > 0.5
        yield Finding(
            id="D07",
            severity="error" if everywhere else grade(endless, train.rows),
            title=f"{endless} of {train.rows} answers have no supervised end token: no learning to stop.",
            evidence={**evidence, "without_end": endless, "examples": train.places("without_end_token")},
            fix=_with_end(facts),
        )
    pad = facts.tokenizer.pad_token if facts.tokenizer else None
    if facts.chat and pad is not None and pad == report.end_of_turn and not endless:
        yield Finding(
            id="D07",
            severity="note",
            title=f"The padding token is the end of turn, {pad}: whet masks by attention, so it is learnt.",
            evidence={"pad_token": pad, "end_of_turn": report.end_of_turn},
            fix=Fix(text="Give the tokenizer a pad token of its own before using trainers that mask by id."),
        )
    if double := train.double_end:
        yield Finding(
            id="D17",
            severity=grade(double, train.rows),
            title=f"{double} of {train.rows} answers end with two end tokens.",
            evidence={**evidence, "double_end": double, "examples": train.places("double_end")},
            fix=_one_end(facts, double),
        )


def _with_end(facts: PlanFacts) -> Fix:
    if not facts.chat:
        return Fix(text="Give the tokenizer an eos_token: plain text ends with it.")
    return other_template(facts, "Choose a template that ends the assistant's turn with a special token.")


def _one_end(facts: PlanFacts, double: int) -> Fix:
    """The template writes two, or the rows bring one along."""
    train, ends = facts.report.train, facts.end_tokens
    literal = sum(train.special_in_text.get(token, 0) for token in ends)
    if facts.chat and literal < double:
        return other_template(facts, "Tokenise by a template whose assistant turn ends once.")
    return Fix(
        text="Remove the literal end token from the rows: it is written anyway.",
        patch=dropping(facts, "markers", double) if facts.chat else {},
    )
