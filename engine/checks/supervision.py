"""Data and template: does every row teach what it should, and does the model learn to stop?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..data.inspection import RowRef, SplitReport
from ..findings import Finding, Fix, Severity
from .registry import PlanFacts, check, share

TOLERATED = 0.01
"""Up to this share of odd rows is a note: real data is never quite clean."""


def rows_of(examples: list[RowRef]) -> list[str]:
    """The first places as ``file:line``."""
    return [f"{row.file}:{row.line}" for row in examples[:5]]


def grade(part: int, whole: int) -> Severity:
    """Warning, or a note where few rows are concerned."""
    return "warning" if share(part, whole) > TOLERATED else "note"


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
        "template": facts.report.template,
        "examples": rows_of(train.unsupervised_examples),
    }
    fix = Fix(
        text="Train on all tokens, or use a template whose assistant turns match these rows.",
        patch={"method.supervise": "all"} if facts.report.supervise == "responses" else {},
    )
    if train.rows and not train.supervised_tokens and masked:
        yield Finding(
            id="D01", severity="error", title="No row has a supervised token.", evidence=evidence, fix=fix
        )
    elif masked > 0:
        yield Finding(
            id="D01",
            severity=grade(masked, train.rows),
            title=f"{masked} of {train.rows} rows have no supervised token and are left out.",
            evidence=evidence,
            fix=Fix(text="Look at these rows: each needs a reply of the assistant."),
        )
    if train.supervised_tokens and share(train.supervised_tokens, train.tokens) < 0.01:
        yield Finding(
            id="D01",
            severity="warning",
            title="Fewer than 1 % of the tokens are supervised.",
            evidence=evidence,
            fix=fix,
        )


@check("data", "D02", "D03")
def truncated_answers(facts: PlanFacts) -> Iterator[Finding]:
    """Rows cut at max_length that lost all of their answer, or its end."""
    train = facts.report.train
    lengths = train.length.model_dump()
    evidence = {"max_length": facts.resolved.max_length, "length": lengths, "rows": train.rows}
    patch = _longer(facts, train)
    text = (
        f"Raise model.max_length to {patch['model.max_length']}."
        if patch
        else "Shorten or drop the long rows: max_length is already the model's longest."
    )
    if lost := train.truncated_lost_all:
        yield Finding(
            id="D02",
            severity="error" if lost == train.rows else grade(lost, train.rows),
            title=f"{lost} of {train.rows} rows lose their whole answer to the cut at max_length.",
            evidence={**evidence, "rows_lost": lost},
            fix=Fix(text=text, patch=patch),
        )
    if lost := train.truncated_lost_end:
        yield Finding(
            id="D03",
            severity=grade(lost, train.rows),
            title=f"{lost} of {train.rows} answers are cut before their end: the model never sees them stop.",
            evidence={**evidence, "rows_cut": lost},
            fix=Fix(text=text, patch=patch),
        )


def _longer(facts: PlanFacts, train: SplitReport) -> dict[str, Any]:
    """A max_length that takes the longest row, or the model's limit; empty when nothing is to be won."""
    wanted = min(train.length.max, facts.model.max_positions or train.length.max)
    return {"model.max_length": wanted} if wanted > facts.resolved.max_length else {}


@check("data", "D05", "D06")
def begin_token(facts: PlanFacts) -> Iterator[Finding]:
    """Two BOS tokens in a row, or none where the tokenizer itself would write one."""
    train = facts.report.train
    if double := train.double_bos:
        yield Finding(
            id="D05",
            severity="error" if share(double, train.rows) > 0.5 else "warning",
            title=f"{double} of {train.rows} rows begin with two BOS tokens.",
            evidence={"rows": double, "bos": facts.report.bos_token, "template": facts.report.template},
            fix=Fix(text=f"Remove the literal {facts.report.bos_token} from the rows: it is written anyway."),
        )
    # Models such as Qwen have no BOS; the report only counts rows where the tokenizer's own rule is broken.
    if (missing := train.missing_bos) and share(missing, train.rows) > 0.5:
        yield Finding(
            id="D06",
            severity="warning",
            title=f"{missing} of {train.rows} rows lack the BOS token this model was trained with.",
            evidence={"rows": missing, "bos": facts.report.bos_token, "template": facts.report.template},
            fix=Fix(text="Use a template that writes bos_token first."),
        )


@check("data", "D07", "D17")
def end_token(facts: PlanFacts) -> Iterator[Finding]:
    """The model learns to stop only from a supervised end token, once."""
    train = facts.report.train
    evidence = {
        "rows": train.rows,
        "end_of_turn": facts.report.end_of_turn,
        "template": facts.report.template,
    }
    if endless := train.without_end_token:
        everywhere = share(endless, train.rows) > 0.5
        yield Finding(
            id="D07",
            severity="error" if everywhere else grade(endless, train.rows),
            title=f"{endless} of {train.rows} answers have no supervised end token: no learning to stop.",
            evidence={**evidence, "without_end": endless},
            fix=Fix(text="Choose a template that ends the assistant's turn with a special token."),
        )
    if double := train.double_end:
        yield Finding(
            id="D17",
            severity=grade(double, train.rows),
            title=f"{double} of {train.rows} answers end with two end tokens.",
            evidence={**evidence, "double_end": double},
            fix=Fix(text="Remove the literal end token from the rows: the template writes it."),
        )


@check("data", "D09")
def no_template(facts: PlanFacts) -> Iterator[Finding]:
    """Chat rows, and neither the recipe nor the model says how a conversation is written."""
    if facts.fitting_template is None:
        return
    yield Finding(
        id="D09",
        severity="error",
        title="The rows are conversations, but the model has no chat template and the recipe names none.",
        evidence={
            "model": facts.model.name,
            "family": facts.model.family,
            "format": facts.report.format.format,
            "this_plan_uses": facts.fitting_template,
        },
        fix=Fix(
            text=f"Use the template {facts.fitting_template}: it fits this model's vocabulary.",
            patch={"data.template": facts.fitting_template},
        ),
    )


@check("data", "D13")
def foreign_template(facts: PlanFacts) -> Iterator[Finding]:
    """The named template belongs to another family: its markers would be spelt out in pieces."""
    if not facts.missing_markers:
        return
    better = facts.better_template
    text = f"Use the template {better}." if better else "Leave data.template out: the model has its own."
    yield Finding(
        id="D13",
        severity="error",
        title=f"data.template={facts.recipe.data.template} does not fit {facts.model.name}: its markers are "
        "no tokens of this vocabulary.",
        evidence={"missing": list(facts.missing_markers), "family": facts.model.family},
        fix=Fix(text=text, patch={"data.template": better}),
    )


@check("data", "D11")
def literal_markers(facts: PlanFacts) -> Iterator[Finding]:
    """Template markers written as plain text: the model would learn to spell them out."""
    train = facts.report.train
    foreign = sum(train.foreign_markers.values())
    if foreign and share(foreign, train.rows) > TOLERATED:
        yield Finding(
            id="D11",
            severity="warning",
            title="Rows contain chat markers of another model, which this vocabulary splits into pieces.",
            evidence={"markers": train.foreign_markers, "rows": train.rows},
            fix=Fix(text="Give the rows as messages and let the template write the markers."),
        )
    special = sum(train.special_in_text.values())
    chat = facts.report.template is not None and facts.report.format.format not in ("text", None)
    if chat and share(special, train.rows) > TOLERATED:
        yield Finding(
            id="D11",
            severity="warning",
            title="Messages contain special tokens as text, on top of those the template writes.",
            evidence={"tokens": train.special_in_text, "rows": train.rows},
            fix=Fix(text="Remove the markers from the messages' content."),
        )
