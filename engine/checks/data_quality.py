"""Data: how much there is, whether it can be read, and whether the rows are what they claim."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Finding, Fix
from .registry import PlanFacts, check, share
from .supervision import grade, rows_of

TOO_FEW_ROWS = 100
FEW_ROWS = 1000
MANY_DUPLICATES = 0.05
SURE_FORMAT = 0.9
HELD_OUT = 0.05
"""Share held out where the held-out file is no use."""


@check("data", "D04")
def max_length(facts: PlanFacts) -> Iterator[Finding]:
    """The recipe asks for longer rows than the model has positions for."""
    asked, limit = facts.recipe.model.max_length, facts.resolved.max_length
    if asked > limit and "max_length" in facts.recipe.model.model_fields_set:
        yield Finding(
            id="D04",
            severity="warning",
            title=f"model.max_length={asked} is more than the model's {limit} positions; {limit} is used.",
            evidence={"asked": asked, "max_positions": facts.model.max_positions},
            fix=Fix(text=f"Set model.max_length to {limit}.", patch={"model.max_length": limit}),
        )


@check("data", "D12")
def conversations(facts: PlanFacts) -> Iterator[Finding]:
    """Odd roles, empty replies, duplicates, and held-out rows that are trained on."""
    report, train = facts.report, facts.report.train
    if odd := train.odd_roles:
        yield Finding(
            id="D12",
            severity=grade(odd, train.rows),
            title=f"{odd} of {train.rows} conversations do not alternate user and assistant.",
            evidence={"rows": odd, "examples": rows_of(train.odd_role_examples)},
            fix=Fix(text="Merge or drop these turns."),
        )
    if empty := train.empty_replies:
        yield Finding(
            id="D12",
            severity=grade(empty, train.rows),
            title=f"{empty} replies of the assistant are empty: the model learns to say nothing.",
            evidence={"replies": empty, "rows": train.rows},
            fix=Fix(text="Drop these rows."),
        )
    if repeated := train.duplicates:
        many = share(repeated, train.rows) > MANY_DUPLICATES
        yield Finding(
            id="D12",
            severity="warning" if many else "note",
            title=f"{repeated} of {train.rows} rows repeat an earlier row.",
            evidence={"duplicates": repeated, "examples": rows_of(train.duplicate_examples)},
            fix=Fix(text="Drop the repeats, unless the repetition is meant."),
        )
    if report.eval is not None and (leaked := report.eval_in_train):
        yield Finding(
            id="D12",
            severity="warning",
            title=f"{leaked} of {report.eval.rows} held-out rows are trained on: eval loss is too good.",
            evidence={"rows": leaked, "examples": rows_of(report.eval_in_train_examples)},
            fix=Fix(
                text="Remove them from one of the two files, or hold rows of data.train out instead.",
                patch={"data.eval": None, "data.eval_fraction": HELD_OUT},
            ),
        )


@check("data", "D15")
def unreadable_rows(facts: PlanFacts) -> Iterator[Finding]:
    """Rows that could not be read, and layouts that were guessed without confidence."""
    report = facts.report
    if bad := report.bad_rows:
        stop = facts.recipe.data.bad_rows == "stop"
        yield Finding(
            id="D15",
            severity="error" if stop else "warning",
            title=f"{bad} rows cannot be used" + ("." if stop else " and are skipped."),
            evidence={
                "bad_rows": bad,
                "examples": [f"{row.file}:{row.line}: {row.reason}" for row in report.bad[:5]],
            },
            fix=Fix(text="Skip and report them.", patch={"data.bad_rows": "skip"})
            if stop
            else Fix(text="Repair the rows named here."),
        )
    for source, guess in report.formats.items():
        if facts.recipe.data.format == "auto" and guess.format and guess.confidence < SURE_FORMAT:
            yield Finding(
                id="D15",
                severity="warning",
                title=f"The rows of {source} look mixed; they are read as {guess.format}.",
                evidence={"confidence": guess.confidence, "reason": guess.reason},
                fix=Fix(text="Say how they are laid out.", patch={"data.format": guess.format}),
            )


@check("data", "D16")
def too_little(facts: PlanFacts) -> Iterator[Finding]:
    """A handful of rows teaches a model to recite them."""
    train = facts.report.train
    # A book is one row of text but many training sequences.
    rows = max(train.rows, train.token_rows)
    if rows < TOO_FEW_ROWS:
        accept = [*facts.recipe.accept, "D16"]
        yield Finding(
            id="D16",
            severity="error",
            title=f"{rows} training rows are too few: the model would learn them by heart.",
            evidence={"rows": rows, "needed": TOO_FEW_ROWS},
            fix=Fix(
                text=f"Collect at least {TOO_FEW_ROWS} rows, or accept this finding.",
                patch={"accept": accept},
            ),
        )
    elif rows < FEW_ROWS:
        yield Finding(
            id="D16",
            severity="note",
            title=f"{rows} training rows are enough for a narrow task; {FEW_ROWS} or more generalise better.",
            evidence={"rows": rows},
        )
