"""Step 6: what will happen, what was found with one key for each fix, and the start."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from whet.engine import api

from ...render.plan import plan_facts
from ...render.text import printable
from ...widgets.finding_card import StepList, finding_line, worst_first
from .messages import FixWanted, Situation, StartWanted


class ReviewStep(Vertical):
    """The plan's facts, and a list: start, then findings, worst first."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.findings: list[api.Finding] = []
        self.told: object = None
        self.listed: object = None

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="plan-box", can_focus=False):
            yield Static(id="plan-facts", markup=False)
        yield StepList(id="review-list")

    def on_mount(self) -> None:
        self.query_one("#plan-box").border_title = "what will happen"
        self.query_one("#review-list").border_title = "start · what was found"

    def enter(self, situation: Situation) -> None:
        """Focus the list: on the start, or the finding that blocks it."""
        self.show(situation)
        self.query_one("#review-list").focus()

    def show(self, situation: Situation) -> None:
        """The plan as it is now."""
        facts = (situation.plan, situation.problem, situation.draft.data)
        if facts != self.told:
            self.told = facts
            self.query_one("#plan-facts", Static).update(facts_of(situation))
        listed = (situation.plan, why_not(situation))
        if listed != self.listed:
            self.listed = listed
            self._list(situation)

    def _list(self, situation: Situation) -> None:
        listed = self.query_one("#review-list", StepList)
        at = listed.highlighted
        plan = situation.plan
        self.findings = worst_first(plan.findings) if plan is not None else []
        why = why_not(situation)
        words = (
            Text("▸ start training", "bold green") if not why else Text(f"▸ start: not yet, {why}", "yellow")
        )
        listed.clear_options()
        listed.add_option(Option(words, "start"))
        listed.add_options(
            [Option(finding_line(one), f"finding-{number}") for number, one in enumerate(self.findings)]
        )
        if not self.findings and plan is not None:
            listed.add_option(
                Option(Text("  nothing was found that speaks against it", "green"), disabled=True)
            )
        listed.highlighted = min(at or 0, max(0, len(self.findings)))

    @property
    def finding(self) -> api.Finding | None:
        """The finding under the cursor."""
        at = self.query_one("#review-list", StepList).highlighted
        return self.findings[at - 1] if at and at <= len(self.findings) else None

    def choose(self, id: str) -> bool:
        """Put the cursor on a finding; False where the plan has none of that id."""
        place = next((number for number, one in enumerate(self.findings, 1) if one.id == id), None)
        if place is not None:
            self.query_one("#review-list", StepList).highlighted = place
        return place is not None

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option_id == "start":
            self.post_message(StartWanted())
        elif self.finding is not None:
            self.post_message(FixWanted(self.finding))


def facts_of(situation: Situation) -> RenderableType:
    """What will happen, or why nothing is known of it."""
    problem = situation.problem
    if problem is not None:
        return Text.assemble((printable(problem.message), "red"), f"\n{printable(problem.hint)}")
    if situation.plan is not None:
        return plan_facts(situation.plan)
    return Text("choose data first (1)" if situation.draft.data is None else "planning …", "dim")


def why_not(situation: Situation) -> str:
    """Why the run cannot start now; empty where it can."""
    plan = situation.plan
    if situation.draft.data is None:
        return "no data is chosen"
    if situation.problem is not None:
        return "the recipe has a problem"
    if situation.draft.wrong:
        return f"{', '.join(situation.draft.wrong)} cannot be used as typed"
    if situation.busy or plan is None:
        return "the plan is being made"
    blocked = plan.blocked()
    if blocked:
        ids = ", ".join(dict.fromkeys(one.id for one in blocked))
        return f"{ids} must be fixed or accepted (enter on it)"
    return ""
