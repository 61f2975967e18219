"""Step 5: the recipe's settings as a form made from its schema; the fit meter follows every change."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from whet.engine import api

from ...render.text import plain
from ...widgets.choice_card import ChoiceCard
from ...widgets.finding_card import StepList
from .draft import Draft
from .fields import COMMON, Field, fields_of, words_of
from .messages import Next, Situation, Typed

NAME, VALUE = 23, 13
"""Columns of a setting's name and value."""


OWN_STEPS = ("data.train", "model.name")
LIVE = ("whole", "number")
"""Kinds that are planned while they are typed; half a name would send the planner looking for it."""


GPUS = "hardware.gpus"


class SettingsStep(Vertical):
    """A line for each setting; left and right change it at once, Enter types, errors stay beside it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h,minus", "step(False)", "less", key_display="←", id="settings.less"),
        Binding("right,l,plus", "step(True)", "more", key_display="→", id="settings.more"),
        Binding("v", "every", "all", id="settings.every"),
    ]

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.fields = _fields("sft")
        self.every = False
        self.values: dict[str, Any] = {}
        self.situation: Situation | None = None
        self.lines: dict[str, Text] = {}
        self.editing: tuple[Field, str] | None = None

    def compose(self) -> ComposeResult:
        yield StepList(id="field-list")
        with Horizontal(id="field-edit"):
            yield Static("", id="field-name", markup=False)
            yield Button("−", id="field-less", compact=True)
            yield Input(id="field-input", compact=True)
            yield Button("+", id="field-more", compact=True)
        yield Static("", id="field-help", markup=False)

    def on_mount(self) -> None:
        self.query_one("#field-edit").display = False

    def enter(self, situation: Situation) -> None:
        """Focus the list."""
        self.show(situation)
        self.query_one("#field-list").focus()

    # --- what is shown

    @property
    def shown_fields(self) -> list[Field]:
        """All, or those that people change; those that are set or wrong always."""
        if self.every:
            return self.fields
        draft = self.situation.draft if self.situation is not None else None
        more = {*draft.edited, *draft.wrong} if draft is not None else set()
        if self.situation is not None and several_gpus(self.situation):
            more.add(GPUS)
        return [one for one in self.fields if one.key in COMMON or one.key in more]

    def show(self, situation: Situation) -> None:
        """Redraw the lines that changed."""
        self.situation = situation
        recipe = situation.draft.recipe
        self.values = {} if recipe is None else recipe.model_dump(mode="json")
        if recipe is not None:
            self.fields = _fields(recipe.method.kind)
        lines: dict[str, Text] = {}
        if recipe is not None:
            section = ""
            for one in self.shown_fields:
                if one.section != section:
                    section = one.section
                    lines[f"head {section}"] = Text(section, "bold cyan")
                lines[one.key] = self._line(one, situation)
        listed = self.query_one("#field-list", StepList)
        if list(lines) != list(self.lines) or not listed.option_count:
            self._list(lines)
        else:
            for key, line in lines.items():
                if line != self.lines[key]:
                    listed.replace_option_prompt(key, line)
        self.lines = lines
        self._help()

    def _list(self, lines: dict[str, Text]) -> None:
        listed = self.query_one("#field-list", StepList)
        now = self.field
        listed.clear_options()
        listed.add_option(Option(Text("▸ keep these settings and go on", "bold"), "go"))
        if not lines:
            listed.add_option(Option(Text("choose data first (1)", "dim"), disabled=True))
        listed.add_options(
            [Option(line, key, disabled=key.startswith("head ")) for key, line in lines.items()]
        )
        place = listed.get_option_index(now.key) if now is not None and now.key in lines else 0
        listed.highlighted = place

    def _line(self, one: Field, situation: Situation) -> Text:
        draft = situation.draft
        text = Text(f"  {one.name:<{NAME}}", no_wrap=True, overflow="ellipsis")
        wrong = draft.wrong.get(one.key)
        if wrong is not None:
            text.append(f"{plain(wrong.words, VALUE):<{VALUE}}", "bold red")
            text.append(f" ✗ {plain(wrong.reason)}", "red")
            return text
        words = words_of(self.value(one)) or "·"
        own = one.key in draft.edited
        text.append(f"{plain(words, VALUE):<{VALUE}}", "bold yellow" if own else "bold")
        text.append(f" {plain(origin(one, draft, situation.plan))}", "dim")
        return text

    def value(self, one: Field) -> Any:
        """Of the recipe as it stands."""
        value: Any = self.values
        for part in one.key.split("."):
            value = value[part]
        return value

    @property
    def field(self) -> Field | None:
        """The setting under the cursor."""
        listed = self.query_one("#field-list", StepList)
        if listed.highlighted is None or not listed.option_count:
            return None
        key = listed.get_option_at_index(listed.highlighted).id
        return next((one for one in self.fields if one.key == key), None)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        self._help()

    def _help(self) -> None:
        one = self.editing[0] if self.editing is not None else self.field
        draft = self.situation.draft if self.situation is not None else Draft()
        self.query_one("#field-help", Static).update(help_of(one, draft), layout=False)

    def choose(self, key: str) -> bool:
        """Put the cursor on a setting, unfolding the others if it is one of them; False: there is none."""
        if self.situation is None or not self.values or key not in {one.key for one in self.fields}:
            return False
        if key not in self.lines:
            self.every = True
            self.show(self.situation)
        listed = self.query_one("#field-list", StepList)
        listed.highlighted = listed.get_option_index(key)
        return True

    # --- changing

    def action_every(self) -> None:
        """All settings, or those that people change."""
        self.every = not self.every
        if self.situation is not None:
            self.show(self.situation)

    def action_step(self, up: bool) -> None:
        """Change the setting under the cursor by one step."""
        one = self.editing[0] if self.editing is not None else self.field
        if one is None or not self.values:
            return
        new = one.step(self.value(one), up)
        if new == self.value(one):
            self.app.notify(f"{one.key} is typed: enter", timeout=2)
            return
        if self.editing is not None:
            self.query_one("#field-input", Input).value = words_of(new)
        else:
            self.post_message(Typed(one, words_of(new)))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        one = self.field
        if event.option_id == "go":
            self.post_message(Next())
        elif one is not None and one.kind in ("choice", "flag"):
            choices = [(name, "" if name else "none") for name in one.choices or ("on", "off")]
            card = ChoiceCard(one.key, one.help, choices, words_of(self.value(one)))
            self.app.push_screen(card, lambda words: self._chosen(one, words))
        elif one is not None:
            self._edit(one)

    def _chosen(self, one: Field, words: str | None) -> None:
        if words is not None:
            self.post_message(Typed(one, words))

    def _edit(self, one: Field) -> None:
        assert self.situation is not None
        wrong = self.situation.draft.wrong.get(one.key)
        words = words_of(self.value(one)) if wrong is None else wrong.words
        self.editing = one, words
        self.query_one("#field-edit").display = True
        self.query_one("#field-name", Static).update(f"{one.key} = ")
        line = self.query_one("#field-input", Input)
        line.value = words
        line.focus()
        self._help()

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        if self.editing is not None and self.situation is not None:
            one, _ = self.editing
            wrong = self.situation.draft.wrong.get(one.key)
            now = words_of(self.value(one)) if wrong is None else wrong.words
            if event.value != now and one.kind in LIVE:
                self.post_message(Typed(one, event.value))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self.editing is not None and event.value != self.editing[1]:
            self.post_message(Typed(self.editing[0], event.value))
        self.leave_field()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.action_step(event.button.id == "field-more")

    def leave_field(self, *, take_back: bool = False) -> bool:
        """Close the line that edits; ``take_back``: as it was before. False where none is open."""
        if self.editing is None:
            return False
        one, words = self.editing
        self.editing = None
        if take_back and one.kind in LIVE:
            self.post_message(Typed(one, words))
        self.query_one("#field-edit").display = False
        self.query_one("#field-list").focus()
        self._help()
        return True


@cache
def _fields(method: str) -> list[Field]:
    """The settings that go with a method."""
    return [_choosable(one) for one in fields_of(api.schema(), method) if one.key not in OWN_STEPS]


def _choosable(one: Field) -> Field:
    """Templates are chosen among the known ones."""
    if one.key != "data.template":
        return one
    return replace(one, kind="choice", choices=("", *api.chat_templates()))


def origin(one: Field, draft: Draft, plan: Any) -> str:
    """Why a setting has its value: a reason, what the planner made of it, or that it is the default."""
    reason = draft.reasons.get(one.key, "")
    decided = plan.origins.get(one.key, "") if plan is not None else ""
    if decided.startswith("planner: "):
        used = next((name for name, key in api.RECIPE_KEYS.items() if key == one.key), None)
        value = words_of(getattr(plan.resolved, used)) if used is not None else ""
        planned = f"→ {value}: {decided.removeprefix('planner: ')}"
        return f"{reason}; {planned}" if reason and reason != decided else planned
    return reason or ("default" if decided == "default" else "")


def help_of(one: Field | None, draft: Draft) -> Text:
    """What the setting is, what it may be, why it has its value, what is wrong with what was typed."""
    if one is None:
        return Text("←→ change a setting at once, enter types a value, v shows all settings.", "dim")
    text = Text.assemble((one.key, "bold"), f"  {one.help}")
    if one.choices:
        text.append(
            f"\none of {', '.join(one.choices)}" if one.kind == "choice" else f"\nof {', '.join(one.choices)}"
        )
    bounds = [f"at least {one.least:g}"] if one.least is not None else []
    bounds += [f"below {one.below:g}"] if one.below is not None else []
    bounds += ["empty: none"] if one.optional else []
    if bounds:
        text.append(f"\n{', '.join(bounds)}; default {words_of(one.default) or 'none'}", "dim")
    wrong = draft.wrong.get(one.key)
    if wrong is not None:
        text.append(f"\n✗ {plain(wrong.reason)}", "bold red")
    elif draft.reasons.get(one.key):
        text.append(f"\nwhy: {plain(draft.reasons[one.key])}", "green")
    return text


def several_gpus(situation: Situation) -> bool:
    """Whether there is a choice to make: the machine has several, or the recipe names a number."""
    plan, recipe = situation.plan, situation.draft.recipe
    asked = recipe is not None and recipe.hardware.gpus != "auto"
    return asked or (plan is not None and plan.origins.get(GPUS, "").startswith("planner"))
