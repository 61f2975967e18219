"""Data: how much there is, whether it can be read, and whether the rows are what they claim."""

from __future__ import annotations

from collections.abc import Iterator

from ..data.inspection import SplitReport
from ..data.languages import UNSURE
from ..data.rows import REFUSES
from ..findings import Finding, Fix
from .registry import PlanFacts, check, share
from .supervision import dropping, grade

TOO_FEW_ROWS = 100
FEW_ROWS = 1000
MANY_DUPLICATES = 0.05
SURE_FORMAT = 0.9
HELD_OUT = 0.05
"""Share held out where the held-out file is no use."""

LEAKING = 0.8
"""Rows whose answer stands in their prompt, from which on this is no task but a leak."""

ENOUGH_FOR_LANGUAGE = 30
MAIN_LANGUAGE, ABSENT_LANGUAGE = 0.8, 0.05


@check("data", "D04")
def max_length(facts: PlanFacts) -> Iterator[Finding]:
    """Recipe, model and tokenizer disagree on how long a row may be."""
    asked, limit = facts.recipe.model.max_length, facts.resolved.max_length
    own = facts.tokenizer.model_max_length if facts.tokenizer else None
    evidence = {"asked": asked, "max_positions": facts.model.max_positions, "tokenizer": own, "used": limit}
    if asked > limit and "max_length" in facts.recipe.model.model_fields_set:
        yield Finding(
            id="D04",
            severity="warning",
            title=f"model.max_length={asked} is more than the model's {limit} positions; {limit} is used.",
            evidence=evidence,
            fix=Fix(text=f"Set model.max_length to {limit}.", patch={"model.max_length": limit}),
        )
    longest = min(facts.report.train.length.max, limit)
    if own is not None and longest > own:
        yield Finding(
            id="D04",
            severity="warning",
            title=f"Rows of {longest} tokens are trained on, but the tokenizer says model_max_length={own}: "
            "tools that follow it cut prompts there.",
            evidence={**evidence, "longest_row": longest},
            fix=Fix(
                text=f"Set model.max_length to {own}, or mend model_max_length in tokenizer_config.json.",
                patch={"model.max_length": own},
            ),
        )


@check("data", "D12")
def conversations(facts: PlanFacts) -> Iterator[Finding]:
    """Odd roles, empty replies, duplicates, and held-out rows that are trained on."""
    train = facts.report.train
    if odd := train.odd_roles:
        yield Finding(
            id="D12",
            severity=grade(odd, train.rows),
            title=f"{odd} of {train.rows} conversations do not alternate user and assistant.",
            evidence={"rows": odd, "examples": train.places("odd_roles")},
            fix=Fix(text="Merge these turns, or leave such rows out.", patch=dropping(facts, "odd", odd)),
        )
    if empty := train.empty_replies:
        yield Finding(
            id="D12",
            severity=grade(empty, train.rows),
            title=f"{empty} of {train.rows} rows have an empty reply: the model learns to say nothing.",
            evidence={"rows": empty, "examples": train.places("empty_replies")},
            fix=Fix(text="Leave these rows out.", patch=dropping(facts, "empty", empty)),
        )
    if repeated := train.duplicates:
        many = share(repeated, train.rows) > MANY_DUPLICATES
        yield Finding(
            id="D12",
            severity="warning" if many else "note",
            title=f"{repeated} of {train.rows} rows repeat an earlier row.",
            evidence={"duplicates": repeated, "examples": train.places("duplicates")},
            fix=Fix(
                text="Leave the repeats out, unless the repetition is meant.",
                patch={"data.drop": [*facts.recipe.data.drop, "duplicates"]},
            ),
        )
    yield from _leaked(facts)


def _leaked(facts: PlanFacts) -> Iterator[Finding]:
    report = facts.report
    if report.eval is None or not (leaked := report.eval_in_train):
        return
    places = [f"{row.file}:{row.line}" for row in report.eval_in_train_examples[:5]]
    # Where the held-out file is the training file, leaving leaked rows out would leave nothing.
    most = leaked > report.train.rows / 2
    fix = (
        Fix(
            text="Hold rows of data.train out instead.",
            patch={"data.eval": None, "data.eval_fraction": HELD_OUT},
        )
        if most
        else Fix(text="Leave them out of training.", patch=dropping(facts, "leaked", leaked))
    )
    yield Finding(
        id="D12",
        severity="warning",
        title=f"{leaked} of {report.eval.rows} held-out rows are trained on: eval loss is too good.",
        evidence={"rows": leaked, "examples": places},
        fix=fix,
    )


@check("data", "D15")
def unreadable_rows(facts: PlanFacts) -> Iterator[Finding]:
    """Rows that could not be read, and layouts that were guessed."""
    report, recipe = facts.report, facts.recipe
    if facts.mapping is not None:
        columns = ", ".join(f"{name} as {field}" for field, name in facts.mapping.columns.items())
        yield Finding(
            id="D15",
            severity="error",
            title=f"The rows have no known layout; this plan reads {columns}.",
            evidence={"format": facts.mapping.format, "columns": facts.mapping.columns},
            fix=Fix(
                text="Say so in the recipe, or name the right columns.",
                patch={"data.format": facts.mapping.format, "data.columns": facts.mapping.columns},
            ),
        )
    mixed = {
        source: guess
        for source, guess in report.formats.items()
        if recipe.data.format == "auto" and guess.format and guess.confidence < SURE_FORMAT
    }
    if bad := report.bad_rows:
        stop = recipe.data.bad_rows == "stop"
        yield Finding(
            id="D15",
            severity="error" if stop else grade(bad, bad + report.train.rows),
            title=f"{bad} rows cannot be used" + ("." if stop else " and are skipped."),
            evidence={
                "bad_rows": bad,
                "examples": [f"{row.file}:{row.line}: {row.reason}" for row in report.bad[:5]],
            },
            fix=_taking(facts) or _leaving_out(stop),
        )
    for source, guess in mixed.items():
        yield Finding(
            id="D15",
            severity="warning",
            title=f"The rows of {source} look mixed; they are read as {guess.format}.",
            evidence={"confidence": guess.confidence, "reason": guess.reason},
            fix=Fix(text="Say how they are laid out.", patch={"data.format": guess.format}),
        )


def _taking(facts: PlanFacts) -> Fix | None:
    """Where most bad rows are those that the model's own template refuses: whet's of the same format."""
    report, known = facts.report, facts.report.template_facts
    refused = sum(REFUSES in row.reason for row in report.bad)
    if report.template != "model" or known is None or known.family is None or 2 * refused <= len(report.bad):
        return None
    text = f"Use whet's template {known.nearest}: the same format, and it takes such conversations."
    return Fix(text=text, patch={"data.template": known.nearest})


def _leaving_out(stop: bool) -> Fix:
    if stop:
        return Fix(text="Repair these rows, or skip and report them.", patch={"data.bad_rows": "skip"})
    return Fix(text="Repair the rows named here.")


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


@check("data", "D16")
def leaks(facts: PlanFacts) -> Iterator[Finding]:
    """The prompt holds the answer, or the held-out rows are in another language than those trained on."""
    train, held_out = facts.report.train, facts.report.eval
    copied = train.answer_in_prompt
    # Of a choice ("spam or ham?") whose last word is the usual answer, only that one ends its prompts.
    choice = train.answers_in_prompt < 2
    if train.rows >= TOO_FEW_ROWS and share(copied, train.rows) >= LEAKING and not choice:
        yield Finding(
            id="D16",
            severity="warning",
            title=f"In {copied} of {train.rows} rows the answer stands in the prompt: it learns to copy.",
            evidence={
                "rows": train.rows,
                "answer_in_prompt": copied,
                "examples": train.places("answer_in_prompt"),
            },
            fix=Fix(text="Take the answer out of the prompt, unless copying is the task."),
        )
    other = _other_language(train, held_out) if held_out is not None else None
    if other is not None:
        yield Finding(
            id="D16",
            severity="warning",
            title=f"Held-out answers are in {other}, which is hardly trained on: eval measures another task.",
            evidence={"train": _decided(train), "eval": _decided(held_out) if held_out else {}},
            fix=Fix(
                text="Hold rows of data.train out instead, or train on rows of both languages.",
                patch={"data.eval": None, "data.eval_fraction": HELD_OUT},
            ),
        )


def _other_language(train: SplitReport, held_out: SplitReport) -> str | None:
    """The held-out rows' main language where training has next to none of it; unsure answers say nothing."""
    trained, asked = _decided(train), _decided(held_out)
    if min(sum(trained.values()), sum(asked.values())) < ENOUGH_FOR_LANGUAGE:
        return None
    main, count = max(asked.items(), key=lambda one: one[1])
    common = share(count, sum(asked.values())) >= MAIN_LANGUAGE
    absent = share(trained.get(main, 0), sum(trained.values())) <= ABSENT_LANGUAGE
    return main if common and absent else None


def _decided(split: SplitReport) -> dict[str, int]:
    return {name: count for name, count in split.languages.items() if name != UNSURE}
