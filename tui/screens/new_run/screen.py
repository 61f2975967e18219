"""New run: from data to a started run in six steps, with the recipe and its memory always in view."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import ContentSwitcher

from whet.engine import api

from ... import drafts
from ...actions import Action
from ...editor import edit_file, edit_text
from ...render.text import plain
from ...widgets.assistant_bar import Advice
from ...widgets.finding_card import fixable
from ...widgets.fit_meter import FitMeter
from ..cards import Question
from .advice import STEPS, Step, actions_of, advice_of
from .asking import AskingScreen
from .data_step import DataStep
from .draft import Draft
from .goal_step import GoalStep
from .messages import DataChosen, EditWanted, Next, StartWanted
from .model_step import ModelStep
from .rail import Rail, RailStep
from .recipe_view import RecipeView
from .review_step import ReviewStep, why_not
from .settings_step import SettingsStep
from .template_step import TemplateStep


class NewRunScreen(AskingScreen):
    """``source``: a recipe's path, name or text, ``{"data": ...}`` or ``{"model": ...}``; None: nothing."""

    heading = "New run"
    topic = "data"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "next", "next", id="new.next"),
        Binding("enter", "next", "next", show=False, id="new.enter"),
        Binding("p", "previous", "back", show=False, id="new.previous"),
        *(
            Binding(str(number), f"step('{step}')", step, show=False, id=f"new.{step}")
            for number, step in enumerate(STEPS, 1)
        ),
        Binding("a", "fix", "fix", show=False, id="new.fix"),
        Binding("m", "fit", "make it fit", show=False, id="new.fit"),
        Binding("u", "undo", "undo", show=False, id="new.undo"),
        Binding("r", "recipe", "recipe", show=False, id="new.recipe"),
        Binding("e", "edit", "edit", show=False, id="new.edit"),
        Binding("w", "keep", "keep", id="new.keep"),
        Binding("s", "start", "start", id="new.start"),
        Binding("escape", "leave", "back", key_display="esc", id="new.leave"),
    ]

    def __init__(self, source: object = None) -> None:
        super().__init__()
        self.source = source
        self.step: Step = "data"
        self._title = self.heading
        self._starting = False

    # --- arranging

    def body(self) -> ComposeResult:
        kept = self.whet.kept
        folder = Path(kept.folder) if kept.folder and Path(kept.folder).is_dir() else Path.cwd()
        yield Rail(id="rail")
        with Horizontal(id="new-main"):
            with ContentSwitcher(initial="data", id="steps"):
                yield DataStep(folder, kept.data, id="data")
                yield ModelStep(id="model")
                yield TemplateStep(id="template")
                yield GoalStep(id="goal")
                yield SettingsStep(id="settings")
                yield ReviewStep(id="review")
                yield RecipeView(id="recipe")
            with Vertical(id="new-side"):
                yield FitMeter(tall=True, id="meter-tall")
                yield RecipeView(id="recipe-side")
        yield FitMeter(tall=False, id="meter-line")

    def on_mount(self) -> None:
        self.query_one("#meter-tall").border_title = "memory and time"
        self.in_background(lambda: api.models(folders=[Path.cwd()]), self._found_models, "models")
        self.call_after_refresh(self._open)

    def _open(self) -> None:
        """Read what the screen was opened with."""
        try:
            draft = Draft.of(self.source)
        except (api.WhetError, OSError) as error:
            self.failed(error)
            draft = Draft()
        self.situation.draft = draft
        if draft.text:
            self.show_step("review")
            self.query_one(DataStep).show_health(focus=False)
            self.replan()
        elif draft.data is not None:
            self.show_step("data")
            self.query_one(DataStep).show_health()
            self.repropose()
        else:
            self.show_step("data")

    def show_step(self, step: Step) -> None:
        """Show one of the steps, or the recipe."""
        self.step = step
        self.query_one("#steps", ContentSwitcher).current = step
        self.topic = {"data": "data", "model": "models", "template": "templates", "goal": "plan"}.get(
            step, "settings" if step in ("settings", "recipe") else "plan"
        )
        self.show_situation()
        if step == "recipe":
            self.query_one("#recipe").focus()
        else:
            self._now().enter(self.situation)

    def _now(self) -> Any:
        """The step that is shown."""
        return self.query_one(f"#{self.step}")

    def show_situation(self) -> None:
        """The step, recipe, meter, rail, advice."""
        situation = self.situation
        situation.busy = self.planner.busy or self._starting or situation.draft.text != situation.planned
        draft, plan = situation.draft, situation.plan
        self.set_class(draft.data is None, "-empty")
        if self.step != "recipe":
            self._now().show(situation)
        for view in self.query(RecipeView):
            view.show(draft)
        note = "no plan yet" if plan is None and situation.problem is not None else ""
        note = "planning …" if situation.busy and (plan is None or situation.rows_read) else note
        note += f" {situation.rows_read:,} rows" if note and situation.rows_read else ""
        for meter in self.query(FitMeter):
            meter.show(plan, note, self.whet.kept.ascii)
        self.query_one(Rail).show(self.step, self._marks())
        where = "" if draft.data is None else f" · {plain(draft.data, 40)}"
        model = draft.recipe.model.name if draft.text and draft.recipe else draft.model
        title = f"New run{where}" + (f" → {plain(model, 40)}" if model else "")
        if title != self._title:
            self._title = title
            self.set_heading(title)
        self.say()

    def _marks(self) -> dict[str, str]:
        situation = self.situation
        if situation.draft.data is None:
            return {}
        plan = situation.plan
        done = "✓" if plan is not None else ""
        marks = dict.fromkeys(("data", "model", "template", "goal", "settings"), done)
        if plan is not None:
            blocked = plan.blocked()
            marks["data"] = "!" if any(one.id.startswith("D") for one in blocked) else done
            marks["review"] = "!" if blocked or not plan.memory.fits else ""
        if situation.draft.wrong or situation.draft.rejected:
            marks["settings"] = "!"
        return marks

    def advice(self) -> Sequence[Advice]:
        return advice_of(self.step, self.situation)

    def actions(self) -> Sequence[Action]:
        draft = self.situation.draft
        return actions_of(self.situation, f"{draft.suggested_name()}.yaml") if draft.text else ()

    def focus_setting(self, key: str) -> bool:
        """Its line in the form, or the step that is about nothing else."""
        if self.situation.draft.recipe is None:
            return False
        own: dict[str, Step] = {"data.train": "data", "model.name": "model"}
        self.show_step(own.get(key, "settings"))
        return key in own or self.query_one(SettingsStep).choose(key)

    def focus_finding(self, id: str) -> bool:
        """Its line in the review, with its fix."""
        plan = self.situation.plan
        if plan is None or id not in {one.id for one in plan.findings}:
            return False
        self.show_step("review")
        return self.query_one(ReviewStep).choose(id)

    # --- what the steps say

    @on(Next)
    def _on_next(self) -> None:
        self.action_next()

    @on(DataChosen)
    def _on_chosen(self) -> None:
        self.query_one(DataStep).show_health()

    @on(EditWanted)
    def _on_edit_wanted(self, event: EditWanted) -> None:
        problem = edit_file(self.app, Path(event.path), event.line)
        if problem:
            self.notify(problem, severity="warning", markup=False)
        self.replan()

    @on(StartWanted)
    def _on_start_wanted(self) -> None:
        self.action_start()

    @on(RailStep.Wanted)
    def _on_rail(self, event: RailStep.Wanted) -> None:
        if event.step == "recipe":
            self.action_recipe()
        else:
            self.show_step(event.step)

    def _found_models(self, models: list[api.ModelEntry]) -> None:
        self.situation.models = models
        if self.step == "model":
            self._now().show(self.situation)

    def failed(self, error: BaseException) -> None:
        super().failed(error)
        self._starting = False

    # --- keys

    def action_next(self) -> None:
        """The next step; from the last one it starts."""
        if self.situation.draft.data is None and self.step == "data":
            self.notify("Choose data first: enter takes the file under the cursor.", timeout=4)
            return
        place = STEPS.index(self.step) if self.step in STEPS else len(STEPS) - 2
        if place + 1 < len(STEPS):
            self.show_step(STEPS[place + 1])

    def action_previous(self) -> None:
        """The step before."""
        place = STEPS.index(self.step) if self.step in STEPS else len(STEPS)
        self.show_step(STEPS[max(0, place - 1)])

    def action_step(self, step: str) -> None:
        """Any step."""
        self.show_step(cast("Step", step))

    def action_recipe(self) -> None:
        """The recipe: its pane where there is one, else in place of the step."""
        side = self.query_one("#recipe-side")
        if self.query_one("#new-side").display:
            side.focus()
        else:
            self.show_step("recipe")

    def action_fix(self) -> None:
        """Apply the fix of the finding under the cursor, else of the worst that has one."""
        plan = self.situation.plan
        here = getattr(self._now(), "finding", None) if self.step in ("data", "review") else None
        if here is not None and not fixable([here]):
            self.notify(f"The fix of {here.id} is not a setting: enter tells it.", timeout=4)
            return
        wanted = here or next(iter(fixable(plan.findings if plan is not None else [])), None)
        if wanted is None:
            self.notify("Nothing was found that a key can fix.", timeout=3)
            return
        self.apply_fix(wanted)

    def action_fit(self) -> None:
        """Take the mildest change that fits the machine."""
        plan = self.situation.plan
        ways = [one for one in plan.alternatives if one.memory.fits] if plan is not None else []
        if not ways:
            words = "It fits." if plan is not None and plan.memory.fits else "Nothing known makes it fit."
            self.notify(words, timeout=3)
            return
        self.put(ways[0].patch, f"to fit: {ways[0].text}")

    def action_undo(self) -> None:
        """Take the last edit back."""
        what = self.situation.draft.undo()
        if what is None:
            self.notify("Nothing to take back.", timeout=3)
            return
        self.notify(f"Taken back: {plain(what, 60)}", timeout=3, markup=False)
        self.replan()
        self.show_situation()

    def action_edit(self) -> None:
        """The recipe in $EDITOR; what comes back is planned, or kept aside where it is no recipe."""
        draft = self.situation.draft
        before = draft.rejected or draft.text
        if not before:
            self.notify("There is no recipe yet: choose data first.", timeout=3)
            return
        name = draft.suggested_name() if draft.text else "recipe"
        text, problem = edit_text(self.app, before, f"{name}.yaml")
        if problem:
            self.notify(problem, severity="warning", markup=False)
        elif text != before:
            self.take_text(text)

    def take_text(self, text: str) -> None:
        """A recipe's text as it came from the editor."""
        try:
            self.situation.draft.read(text)
        except api.WhetError as error:
            self.failed(error)
        self.replan()
        self.show_situation()

    def action_keep(self) -> None:
        """Keep the recipe as a draft."""
        draft = self.situation.draft
        if not draft.text:
            self.notify("There is no recipe to keep yet: choose data first.", timeout=3)
            return
        name = self._kept()
        if name is not None:
            self.notify(f"Kept as the draft {name}; Home lists it.", timeout=4, markup=False)

    def _kept(self) -> str | None:
        """The draft's name once it is written; None, with a card, where it cannot be."""
        try:
            return self.situation.draft.keep()
        except api.WhetError as error:
            self.failed(error)
            return None

    def leaving(self) -> None:
        """Edits that were not started become a draft."""
        if self.situation.draft.changed:
            self._kept()

    def action_start(self) -> None:
        """Start the run of the plan that is shown, and watch it."""
        why = "" if self._starting else why_not(self.situation)
        if self._starting or why:
            self.notify(f"Not started: {why}." if why else "It is being started.", timeout=4, markup=False)
            return
        plan = self.situation.plan
        assert plan is not None
        code = api.model_code(plan)
        if code is None:
            self._start(plan, frozenset())
            return
        words = (
            f"{plan.recipe.model.name} brings Python code of its own, {code}. It runs with all your rights "
            "on this machine. Allow exactly this code for this run?"
        )
        card = Question(words, "Allow and start", "Do not start")
        self.app.push_screen(card, lambda yes: self._start(plan, frozenset({code})) if yes else None)

    def _start(self, plan: api.Plan, code: frozenset[str]) -> None:
        self._starting = True
        self.in_background(lambda: api.start(plan, "tui", remote_code=code), self._started, "start")
        self.show_situation()

    def _started(self, run_id: str) -> None:
        name = self.situation.draft.name
        if name is not None:
            drafts.discard(name)
        app = self.whet
        if self.is_active:
            self.dismiss()
        app.open("run", run_id)

    def action_leave(self) -> None:
        """Out of a field, else out of the screen; edits are kept as a draft."""
        if self.step == "settings" and self.query_one(SettingsStep).leave_field(take_back=True):
            return
        focused: Widget | None = self.focused
        if focused is self.query_one("#recipe-side"):
            self.show_step(self.step)
            return
        self.dismiss()
        if self.situation.draft.changed and (name := self._kept()) is not None:
            self.app.notify(f"Kept as the draft {name}.", timeout=4, markup=False)
