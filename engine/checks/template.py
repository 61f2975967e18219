"""The chat template: whose it is, whether it asks for an answer, and whether training sees the same."""

from __future__ import annotations

from collections.abc import Iterator

from ..data.chat_templates import TEMPLATES
from ..data.template_facts import TemplateFacts, rendered_family
from ..findings import Finding, Fix
from .registry import PlanFacts, check, share

TOLERATED = 0.01


def template_name(facts: PlanFacts) -> str | None:
    """The template in force as a word: a long text of the recipe is not evidence."""
    named = facts.report.template
    return "the recipe's own text" if named is not None and "{" in named else named


def better_template(facts: PlanFacts) -> str | None:
    """What ``data.template`` should be instead of the one in force; None for the model's own."""
    if facts.recipe.data.template is not None and facts.model.has_chat_template:
        return None
    known = facts.report.template_facts or TemplateFacts()
    return known.better(facts.family.chat_template)


def other_template(facts: PlanFacts, text: str) -> Fix:
    """The fix that puts a better template in force; a sentence alone where nothing is known of this one."""
    if facts.report.template_facts is None:
        return Fix(text=text)
    return Fix(text=text, patch={"data.template": better_template(facts)})


def repaired(facts: PlanFacts, id: str, text: str) -> Fix | None:
    """The fix that puts the template's repaired text in force, where there is one for this finding."""
    known = facts.report.template_facts
    source = known.repairs.get(id) if known else None
    return Fix(text=text, patch={"data.template": source}) if source is not None else None


def spelt_out(facts: PlanFacts) -> tuple[str, ...]:
    """Markers of the template in force that this vocabulary splits into pieces (finding D13).

    A format whose markers are plain text by design, such as Zephyr's, has none.
    """
    if facts.missing_markers:
        return facts.missing_markers
    known = facts.report.template_facts
    if known is None or not facts.chat or not known.split_markers:
        return ()
    plain = known.family is not None and known.nearest is not None and not TEMPLATES[known.nearest].markers
    return () if plain else tuple(known.split_markers)


@check("data", "D08")
def stops_elsewhere(facts: PlanFacts) -> Iterator[Finding]:
    """The token that ends a trained answer is not among those at which generation stops."""
    report = facts.report
    # With a template of the recipe's choice its end of turn is written into what is saved.
    if not facts.report.train.rows or spelt_out(facts) or (facts.chat and report.template != "model"):
        return
    token, id = (
        (report.end_of_turn, report.end_id)
        if facts.chat
        else (facts.tokenizer.eos_token if facts.tokenizer else None, report.eos_id)
    )
    if token is None or id is None or id in facts.model.eos_ids or token in facts.recipe.model.end_tokens:
        return
    yield Finding(
        id="D08",
        severity="warning",
        title=f"Answers are trained to end with {token} (id {id}), but generation does not stop there.",
        evidence={"end_of_turn": token, "end_id": id, "generation_stops_at": facts.model.eos_ids},
        fix=Fix(
            text=f"Write both into generation_config.json: {token} (id {id}) beside {facts.model.eos_ids}.",
            patch={"model.end_tokens": [*facts.recipe.model.end_tokens, token]},
        ),
    )


@check("data", "D09")
def no_template(facts: PlanFacts) -> Iterator[Finding]:
    """Nothing says how a conversation is written, or how an answer is asked for."""
    if facts.fitting_template is not None:
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
        return
    known = facts.report.template_facts
    if known is None or not facts.chat or not known.missing_header:
        return
    fix = repaired(facts, "D09", f"Have the template write {known.missing_header!r} when it asks.")
    yield Finding(
        id="D09",
        severity="warning",
        title="The template has no generation prompt: asked for an answer, it does not open the "
        "assistant's turn.",
        evidence={"template": template_name(facts), "trained_opening": known.missing_header},
        fix=fix or other_template(facts, "Use a known template."),
    )


@check("data", "D10")
def other_prompt(facts: PlanFacts) -> Iterator[Finding]:
    """What the model sees when it is asked is not how its training rows begin."""
    train, known = facts.report.train, facts.report.template_facts
    broken = train.broken_prefix
    if not broken or share(broken, train.rows) <= TOLERATED:
        return
    evidence = {"rows": train.rows, "broken": broken, "examples": train.places("broken_prefix")}
    if known is not None and not known.trained.startswith(known.prompt):
        evidence |= {"prompt": known.prompt, "trained": known.trained}
    fix = repaired(facts, "D10", "Ask with the very text that training has before an answer.")
    yield Finding(
        id="D10",
        severity="warning",
        title=f"In {broken} of {train.rows} rows the prompt at inference is not how the trained text begins.",
        evidence=evidence,
        fix=fix or other_template(facts, "Use one template whose text does not depend on what follows."),
    )


@check("data", "D10")
def dropped_thinking(facts: PlanFacts) -> Iterator[Finding]:
    """Answers that had thinking, in rows where the template drops it, are no part of what is learnt."""
    train = facts.report.train
    if dropped := train.thinking_dropped:
        yield Finding(
            id="D10",
            severity="note",
            title=f"{dropped} of {train.rows} rows have answers whose thinking the template drops, as it "
            "does at inference: these are context and not learnt.",
            evidence={
                "rows": train.rows,
                "thinking_dropped": dropped,
                "examples": train.places("thinking_dropped"),
            },
            fix=Fix(
                text="Make a row of every answer, each with its thinking.", patch={"data.reasoning": "each"}
            ),
        )


@check("data", "D11")
def literal_markers(facts: PlanFacts) -> Iterator[Finding]:
    """Template markers written as plain text: the model would learn to spell them out."""
    train = facts.report.train
    foreign = sum(train.foreign_markers.values())
    few = share(train.marked_rows, train.rows) <= 0.5
    patch = {"data.drop": [*facts.recipe.data.drop, "markers"]} if few else {}
    text = "Give the rows as messages and let the template write the markers."
    if foreign and share(foreign, train.rows) > TOLERATED:
        family = rendered_family(list(train.foreign_markers))
        evidence = {"markers": train.foreign_markers, "rows": train.rows}
        yield Finding(
            id="D11",
            severity="warning",
            title="Rows contain chat markers or placeholders as text, which this vocabulary splits into "
            "pieces.",
            evidence=evidence
            | ({"written_for": family} if family else {})
            | {"examples": train.places("marked_rows")},
            fix=Fix(text=text, patch=patch),
        )
    explained = set(facts.end_tokens) if train.double_end else set()
    if train.double_bos and facts.report.bos_token:
        explained.add(facts.report.bos_token)
    special = {token: n for token, n in train.special_in_text.items() if token not in explained}
    if facts.chat and share(sum(special.values()), train.rows) > TOLERATED:
        yield Finding(
            id="D11",
            severity="warning",
            title="Messages contain special tokens as text, on top of those the template writes.",
            evidence={
                "tokens": special,
                "rows": train.rows,
                "examples": train.places("marked_rows"),
            },
            fix=Fix(text="Remove the markers from the messages' content.", patch=patch),
        )


@check("data", "D13")
def foreign_template(facts: PlanFacts) -> Iterator[Finding]:
    """The template belongs to another family: its markers are spelt out in pieces."""
    missing = spelt_out(facts)
    if not missing:
        return
    report, known = facts.report, facts.report.template_facts
    named = facts.recipe.data.template
    better = facts.better_template if facts.missing_markers else better_template(facts)
    other = known is not None and known.family is not None and known.nearest != named
    whose = f" It is {known.nearest}'s ({known.likeness:.0%} alike)." if known and other else ""
    subject = "The model's chat template" if report.template == "model" else f"data.template={named}"
    if named is not None and "{" in named:
        subject = "The recipe's template"
    text = f"Use the template {better}." if better else "Leave data.template out: the model has its own."
    yield Finding(
        id="D13",
        # Somebody may have trained a model with markers in pieces; nobody should begin to.
        severity="error" if facts.missing_markers else "warning",
        title=f"{subject} does not fit {facts.model.name}: its markers are no tokens of this vocabulary."
        + whose,
        evidence={
            "missing": list(missing),
            "family": facts.model.family,
            "template_of": known.family if known else None,
            "fitting": known.fitting if known else [],
        },
        fix=Fix(text=text, patch={"data.template": better}),
    )
