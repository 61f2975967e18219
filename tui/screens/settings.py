"""Looks and habits of the TUI: theme, bandwidth, ASCII, and the ids by which keys can be changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Label, OptionList, Static, Switch
from textual.widgets.option_list import Option

from .. import kept
from ..app import SCREENS_BY_NAME, WhetApp
from ..render.text import plain
from ..widgets.assistant_bar import Advice
from .base import WhetScreen
from .home import HomeScreen


class SettingsScreen(WhetScreen):
    """Each change is seen and kept at once."""

    heading = "whet · settings"
    topic = "keys"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("b", "flip('low_bandwidth')", "low bandwidth", id="settings.bandwidth"),
        Binding("a", "flip('ascii')", "ASCII", id="settings.ascii"),
    ]

    def body(self) -> ComposeResult:
        names = sorted(self.app.available_themes, key=lambda name: (name != "whet", name))
        with Horizontal(id="settings"):
            with Vertical(id="looks"):
                yield Label("Theme")
                yield OptionList(*(Option(name, name) for name in names), id="theme")
                for name, words in SWITCHES.items():
                    with Horizontal(classes="switch"):
                        yield Switch(getattr(self.whet.kept, name), id=name)
                        yield Label(words)
            with VerticalScroll(id="keys", can_focus=True):
                yield Static(keys_table(self.whet.kept.keymap))

    def on_mount(self) -> None:
        super().on_mount()
        themes = self.query_one("#theme", OptionList)
        themes.highlighted = themes.get_option_index(self.app.theme)

    @on(OptionList.OptionSelected, "#theme")
    def _theme_chosen(self, event: OptionList.OptionSelected) -> None:
        self.app.theme = str(event.option_id)  # the app keeps it

    @on(Switch.Changed)
    def _switched(self, event: Switch.Changed) -> None:
        setattr(self.whet.kept, str(event.switch.id), event.value)
        self.whet.keep()

    def action_flip(self, name: str) -> None:
        """Turn a switch by its key."""
        self.query_one(f"#{name}", Switch).toggle()

    def advice(self) -> Sequence[Advice]:
        return (
            Advice(f"Kept in {kept.kept_file()}; keys are changed there, by the ids on this screen."),
            Advice("On a slow link: figures are drawn every five seconds.", "b"),
        )


SWITCHES = {
    "low_bandwidth": "low bandwidth: redraw every 5 s",
    "ascii": "plots and bars of ASCII characters",
}


PARTS = (
    ("widgets.run_table", "RunTable"),
    ("screens.new_run.data_step", "DataStep"),
    ("screens.new_run.data_step", "RowCard"),
    ("screens.new_run.model_step", "ModelStep"),
    ("screens.new_run.template_step", "TemplateStep"),
    ("screens.new_run.settings_step", "SettingsStep"),
    ("screens.new_run.recipe_view", "RecipeView"),
    ("widgets.file_browser", "FileBrowser"),
    ("widgets.token_view", "TokenView"),
    ("widgets.check_list", "CheckList"),
    ("widgets.finding_card", "StepList"),
    ("widgets.finding_card", "FindingCard"),
    ("widgets.choice_card", "ChoiceCard"),
    ("widgets.choice_card", "LineCard"),
    ("screens.run.log", "LogScreen"),
    ("screens.run.log", "LogView"),
    ("screens.run.panels", "Page"),
    ("screens.run.panels", "Findings"),
    ("screens.run.cards", "PageCard"),
    ("screens.chat_prompt", "PromptCard"),
    ("screens.push", "PushCard"),
    ("screens.ask", "AskCard"),
    ("screens.cards", "ErrorCard"),
    ("screens.cards", "Question"),
    ("screens.cards", "CopyCard"),
    ("screens.jump", "JumpScreen"),
)
"""What has keys of its own besides the screens."""


def all_bindings() -> Iterator[Binding]:
    """Those of the app, of every screen and of their parts, each id once."""
    classes: list[type] = [WhetApp, HomeScreen]
    for module, name in (*((f"screens.{one}", name) for one, name in SCREENS_BY_NAME.values()), *PARTS):
        classes.append(getattr(import_module(f"..{module}", __package__), name))
    seen = set()
    for owner in classes:
        for binding in Binding.make_bindings(owner.__dict__.get("BINDINGS", ())):
            if binding.id and binding.id not in seen:
                seen.add(binding.id)
                yield binding


def keys_table(keymap: dict[str, str]) -> Table:
    """Id, key in force, meaning."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for heading in ("id", "key", "does"):
        table.add_column(heading, style="" if heading == "key" else "dim", no_wrap=True)
    for binding in all_bindings():
        key = keymap.get(binding.id or "", binding.key_display or binding.key)
        table.add_row(Text(binding.id or ""), Text(plain(key, 24)), Text(binding.description))
    return table
