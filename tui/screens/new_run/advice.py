"""What the assistant bar and the copied actions say on New run, from the situation alone."""

from __future__ import annotations

from typing import Literal

from whet.engine import api

from ...actions import Action, mcp_call, mcp_start
from ...render.text import plain
from ...render.units import size
from ...widgets.assistant_bar import Advice
from ...widgets.finding_card import fixable, worst_first
from ...widgets.fit_meter import time_and_steps, way_out
from .messages import Situation

TOO_BIG = "L11"
"""The finding that says what the fit meter says."""
UNKNOWN_LAYOUT = "data.format"
"""Code of the error about rows whose columns have no known names."""

Step = Literal["data", "model", "template", "goal", "settings", "review", "recipe"]
STEPS: tuple[Step, ...] = ("data", "model", "template", "goal", "settings", "review")

ABOUT = {
    "data": "This is what will be learnt from; rows with problems are listed.",
    "model": "● is chosen; enter takes another, and enter again goes on.",
    "template": "Only what is underlined is learnt: the answers, with their end. ] next row",
    "goal": "Say what matters; whet sets everything to it and gives its reasons.",
    "settings": "Each value has its reason; ←→ change one and the memory bar follows.",
    "review": "The run is a process of its own: quitting does not end it.",
    "recipe": "The whole recipe; e opens it in your editor, w keeps it as a draft.",
}

NO_TEMPLATE = "No chat template writes these rows: this is what the model reads of each. ] next text"


def advice_of(step: Step, situation: Situation) -> list[Advice]:
    """Most urgent first: what hinders the start, then the step."""
    draft, plan, problem = situation.draft, situation.plan, situation.problem
    if draft.data is None:
        return [
            Advice("Choose what to learn from: a file or folder below, or the demo.", "enter"),
            Advice("A path or a hub id can be typed too.", "i"),
        ]
    said: list[Advice] = []
    if draft.rejected is not None:
        said.append(Advice("What came from the editor is no recipe; it is kept, fix it there.", "e", "error"))
    if draft.wrong:
        keys = ", ".join(draft.wrong)
        said.append(Advice(f"{keys}: not usable as typed; the reason stands beside it.", "5", "error"))
    if problem is not None:
        said.append(_about(problem, step))
    elif situation.busy:
        rows = f" {situation.rows_read:,} rows so far" if situation.rows_read else ""
        said.append(Advice(f"Reading and planning …{rows}"))
    if plan is not None and not problem:
        said += _about_plan(step, situation, plan)
    view = situation.template
    about = NO_TEMPLATE if step == "template" and view is not None and _bare(view) else ABOUT[step]
    said.append(Advice(about, "" if step == "recipe" else "enter"))
    return said


def _bare(view: api.TemplateView) -> bool:
    """Whether no chat template writes the rows."""
    return view.template is None and bool(view.note)


def _about(problem: api.WhetError, step: Step) -> Advice:
    """Why nothing is planned, and the key that leads to where it is solved."""
    if problem.code == UNKNOWN_LAYOUT and step == "data":
        return Advice(
            "whet cannot tell which column is the question, and which the answer.", "enter", "error"
        )
    return Advice(f"{plain(problem.message, 200)} {plain(problem.hint, 200)}", _way(problem), "error")


def _way(problem: api.WhetError) -> str:
    """The step where a problem of planning is solved."""
    kind = problem.code.split(".")[0]
    return {"data": "1", "model": "2", "tokenizer": "2", "template": "3"}.get(kind, "5")


def _about_plan(step: Step, situation: Situation, plan: api.Plan) -> list[Advice]:
    said: list[Advice] = []
    if not plan.memory.fits:
        short = f"Needs {size(plan.memory.needed)} of {size(plan.memory.capacity)}. {way_out(plan)}"
        said.append(Advice(short, "m" if _fitting(plan) is not None else "2", "error"))
    others = [one for one in plan.blocked() if plan.memory.fits or one.id != TOO_BIG]
    blocked = [one for one in others if step not in ("review", "data") or one.fix is not None]
    fixes = fixable(blocked) or fixable([one for one in plan.findings if one.severity == "warning"])
    if fixes:
        worst = fixes[0]
        assert worst.fix is not None
        said.append(Advice(f"{worst.id}: {plain(worst.title)} {plain(worst.fix.text)}", "a", worst.severity))
    elif blocked:
        said.append(Advice(f"{blocked[0].id}: {plain(blocked[0].title)}", "6", "error"))
    if not said and step == "data":
        said += _about_rows(plan)
    if not said and step == "review":
        said.append(Advice(f"Nothing speaks against it: {time_and_steps(plan)}.", "s"))
    return said


def _about_rows(plan: api.Plan) -> list[Advice]:
    """The worst that was found about the data, and what one key mends."""
    found = [one for one in worst_first(plan.findings) if one.id.startswith("D")]
    said = [Advice(f"{one.id}: {plain(one.title)}", "", one.severity) for one in found[:1]]
    mends = next((one for one in fixable(found) if one.fix is not None), None)
    if mends is not None and mends.fix is not None:
        said.append(Advice(f"{mends.id}: {plain(mends.fix.text)}", "a", mends.severity))
    return said


def _fitting(plan: api.Plan) -> dict[str, object] | None:
    return next((one.patch for one in plan.alternatives if one.memory.fits), None)


def actions_of(situation: Situation, file: str) -> list[Action]:
    """Start, and only plan, in the other forms. The recipe itself travels in each."""
    recipe = situation.draft.recipe
    if recipe is None:
        return []
    text = api.to_yaml(recipe)
    values = recipe.model_dump(mode="json", exclude_unset=True)
    written = f"cat > {file} <<'END'\n{text}END\n"
    made = f"plan = api.plan(api.Recipe.model_validate({values!r}))\n"
    changes = flat(values)
    data, model = changes.pop("data.train"), changes.pop("model.name")
    planned = mcp_call("plan_create", data=data, model=model, changes=changes)
    started = mcp_start(file, data=data, model=model, changes=changes)
    return [
        Action(
            "start",
            f"{written}whet train {file}",
            text,
            f"{made}api.start(plan, started_by='python')",
            started,
        ),
        Action(
            "only plan", f"{written}whet plan {file}", "", f"{made}print(plan.id, plan.findings)", planned
        ),
    ]


def flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings by dotted key; ``data.columns`` is a value itself."""
    found: dict[str, object] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and not prefix:
            found |= flat(value, f"{key}.")
        else:
            found[key] = value
    return found
