"""The half of New run that talks with the engine: wishes of the steps in, plans and proposals out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from textual import on
from textual.worker import Worker

from whet.engine import api

from ...render.text import override, plain
from ...widgets.finding_card import FindingCard
from ..base import WhetScreen
from .draft import BY_YOU, Draft
from .messages import (
    ColumnsChosen,
    DataChosen,
    FixWanted,
    GoalChosen,
    MethodChosen,
    ModelChosen,
    Patched,
    Situation,
    Typed,
)
from .planning import Answer, Planner, effect_of

DEBOUNCE_SECONDS = 0.2
"""Quiet time after a keystroke before it is planned."""

XRAY_ROWS = 8
GROUP = "plan"


class AskingScreen(WhetScreen):
    """Holds the situation; a subclass shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.situation = Situation(Draft())
        self.planner = Planner(self._work, self._answered)
        self._works = count()

    # Textual calls the handlers of every class, so none calls its parent's.

    def on_mount(self) -> None:
        self._debounce = self.set_timer(0, lambda: None, pause=True)
        self.set_interval(self.whet.seconds_between_looks, self._look_at_progress)

    def show_situation(self) -> None:
        """Show it again; something changed."""
        raise NotImplementedError

    # --- asking

    def repropose(self) -> None:
        """Ask for a whole recipe for the draft's goal."""
        if self.situation.draft.data is not None:
            self.planner.propose(self.situation.draft)
        self.show_situation()

    def replan(self) -> None:
        """Ask for the plan of the text as it is."""
        if self.situation.draft.text:
            self.planner.plan(self.situation.draft, XRAY_ROWS)
        self.show_situation()

    def replan_soon(self) -> None:
        """After the last of several quick edits."""
        self._debounce.stop()
        self._debounce = self.set_timer(DEBOUNCE_SECONDS, self.replan)
        self.show_situation()

    def _work(self, work: Callable[[], Answer], done: Callable[[Answer], None]) -> None:
        # A group each: the planner lets one end before it begins the next.
        self.in_background(work, done, f"{GROUP} {next(self._works)}")

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        if event.worker.group.startswith(GROUP) and event.worker.error is not None:
            self.planner.failed()
            self.show_situation()

    def _look_at_progress(self) -> None:
        if self.planner.busy and self.planner.rows_read != self.situation.rows_read:
            self.situation.rows_read = self.planner.rows_read
            self.show_situation()

    def _answered(self, answer: Answer) -> None:
        situation, draft = self.situation, self.situation.draft
        situation.rows_read = 0
        if answer.proposal is not None:
            if answer.proposal.goal != draft.goal():
                self.repropose()  # wishes or edits came meanwhile: they count, too
                return
            draft.take(answer.proposal)
            situation.proposal, situation.plan, situation.planned = answer.proposal, answer.plan, draft.text
            situation.uses, situation.encoders = answer.uses, answer.encoders
            self.replan()  # for the X-ray
        elif answer.plan is not None:
            situation.plan, situation.template = answer.plan, answer.template
            situation.uses, situation.encoders = answer.uses, answer.encoders
            situation.planned = answer.text
        else:
            situation.planned = answer.text or draft.text
        situation.problem = answer.problem
        if answer.plan is not None:
            self._remember()
        self.show_situation()

    def _remember(self) -> None:
        """What was used comes first the next time."""
        draft, kept = self.situation.draft, self.whet.kept
        if draft.data is not None:
            path = Path(draft.data).expanduser()
            kept.remember("data", str(path.absolute()) if path.exists() else draft.data)
            kept.folder = str(path.absolute().parent) if path.exists() else kept.folder
        if draft.recipe is not None:
            kept.remember("models", draft.recipe.model.name)
        self.whet.keep()

    # --- wishes

    @on(DataChosen)
    def _on_data(self, event: DataChosen) -> None:
        situation, draft = self.situation, self.situation.draft
        draft.choose_data(event.source)
        situation.plan = situation.proposal = situation.template = situation.problem = None
        situation.uses, draft.method = (), None
        if draft.own_text:
            self.put({"data.train": draft.data})
        else:
            self.repropose()

    @on(ColumnsChosen)
    def _on_columns(self, event: ColumnsChosen) -> None:
        draft = self.situation.draft
        if draft.own_text:
            self.put(event.patch)
        else:
            draft.edited |= event.patch
            self.repropose()

    @on(MethodChosen)
    def _on_method(self, event: MethodChosen) -> None:
        draft = self.situation.draft
        if draft.own_text:
            self.put({"method.kind": event.kind})
            return
        draft.method = event.kind
        draft.edited = {key: value for key, value in draft.edited.items() if not key.startswith("method.")}
        self.repropose()

    @on(ModelChosen)
    def _on_model(self, event: ModelChosen) -> None:
        draft = self.situation.draft
        draft.model = event.name
        if draft.own_text and event.name is not None:
            self.put({"model.name": event.name})
        else:
            self.repropose()

    @on(GoalChosen)
    def _on_goal(self, event: GoalChosen) -> None:
        for name, value in event.wishes.items():
            setattr(self.situation.draft, name, value)
        self.repropose()

    @on(Typed)
    def _on_typed(self, event: Typed) -> None:
        self.situation.draft.type_in(event.field, event.words)
        self.replan_soon()

    @on(Patched)
    def _on_patched(self, event: Patched) -> None:
        if self.situation.draft.text:
            self.put(event.patch, event.reason)

    def put(self, patch: dict[str, Any], reason: str = BY_YOU) -> None:
        """Change settings at once; a card says why they do not go together."""
        try:
            self.situation.draft.put(patch, reason)
        except api.WhetError as error:
            self.failed(error)
            return
        self.replan_soon()

    @on(FixWanted)
    def _on_fix(self, event: FixWanted) -> None:
        """Its card: evidence, why, the diff, and what the fixed recipe's plan would say."""
        finding, text = event.finding, self.situation.draft.text
        plan = self.situation.plan
        before = list(plan.findings) if plan is not None else []
        diff, effect = "", None
        if finding.fix is not None and finding.fix.patch:
            new = api.patch_text(text, [finding], [finding.id])
            diff, effect = new.diff, (lambda: effect_of(new.text, before))
        card = FindingCard(finding, diff, effect, api.explain(finding.id).why)
        self.app.push_screen(card, lambda apply: self.apply_fix(finding) if apply else None)

    def apply_fix(self, finding: api.Finding) -> None:
        """Its patch becomes part of the recipe, which is planned anew."""
        assert finding.fix is not None
        try:
            self.situation.draft.fix(finding)
        except api.WhetError as error:
            self.failed(error)
            return
        changed = " ".join(override(key, value) for key, value in finding.fix.patch.items())
        self.notify(f"{finding.id}: {plain(changed, 120)} · u takes it back", timeout=5, markup=False)
        self.replan_soon()
