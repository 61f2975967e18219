"""The terminal app: screens over the engine's façade. No torch, and the engine after the first paint."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.theme import Theme
from textual.widgets import Input

from . import kept
from .screens.base import WhetScreen
from .screens.home import HomeScreen

THEME = Theme(
    name="whet",
    primary="#7aa2f7",
    secondary="#bb9af7",
    accent="#e0af68",
    warning="#e0af68",
    error="#f7768e",
    success="#9ece6a",
    foreground="#c0caf5",
    background="#16161e",
    surface="#1a1b26",
    panel="#24283b",
    dark=True,
)

TYPED = ("help", "ask", "copy", "jump", "quit")
"""Actions by a printable key."""

SCREENS_BY_NAME = {
    "new": ("new_run", "NewRunScreen"),
    "run": ("run", "RunScreen"),
    "compare": ("compare", "CompareScreen"),
    "chat": ("chat", "ChatScreen"),
    "export": ("export", "ExportScreen"),
    "doctor": ("doctor", "DoctorScreen"),
    "help": ("help", "HelpScreen"),
    "settings": ("settings", "SettingsScreen"),
}


class WhetApp(App[None]):
    """Opens on Home. Runs live in their own processes: quitting, or losing the terminal, ends none."""

    TITLE = "whet"
    CSS_PATH = Path(__file__).with_name("styles.tcss")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "help", key_display="?", id="app.help"),
        Binding("f1", "guide", "help", show=False, id="app.guide"),
        Binding("slash", "ask", "ask", key_display="/", id="app.ask"),
        Binding("y", "copy", "copy", id="app.copy"),
        Binding("f", "jump", "jump", show=False, id="app.jump"),
        Binding("escape", "back", "back", key_display="esc", id="app.back"),
        Binding("q", "quit", "quit", show=False, id="app.quit"),
        Binding("ctrl+q", "quit", "quit", show=False, priority=True, id="app.quit_always"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
        self.VERTICAL_BREAKPOINTS = [(0, "-short"), (34, "-tall")]
        self.kept = kept.load()
        self.animation_level = "none"  # a redraw costs an SSH session more than it tells

    def on_mount(self) -> None:
        self.register_theme(THEME)
        self.theme = self.kept.theme if self.kept.theme in self.available_themes else THEME.name
        self.set_keymap(self.kept.keymap)
        self.theme_changed_signal.subscribe(self, self._keep_theme)  # the palette changes it, too

    def get_default_screen(self) -> Screen[None]:
        return HomeScreen()

    def open(self, name: str, *arguments: object) -> None:
        """Push a screen by name; its module is imported now, not at the start."""
        module, screen = SCREENS_BY_NAME[name]
        self.push_screen(getattr(import_module(f".screens.{module}", __package__), screen)(*arguments))

    def action_open(self, name: str) -> None:
        """:meth:`open`, for bindings."""
        self.open(name)

    @property
    def seconds_between_looks(self) -> float:
        """How often live figures are drawn: once a second, or less on a slow link."""
        from whet.engine.api import settings

        return 5.0 if self.kept.low_bandwidth or settings().low_bandwidth else 1.0

    def keep(self) -> None:
        """Write what is kept between starts; a disk that takes nothing stops nobody."""
        try:
            kept.save(self.kept)
        except OSError as error:
            self.notify(f"Not kept for the next start: {error}", severity="warning", markup=False)

    def _keep_theme(self, theme: Theme) -> None:
        if theme.name != self.kept.theme:
            self.kept.theme = theme.name
            self.keep()

    async def action_quit(self) -> None:
        """End the app, not the runs; what was begun is kept."""
        for screen in self.screen_stack:
            if isinstance(screen, WhetScreen):
                screen.leaving()
        self.exit()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """No way back from Home; in a field, letters are typed, so none is promised to do anything else."""
        if action == "back":
            return len(self.screen_stack) > 1
        return not (action in TYPED and isinstance(self.focused, Input))

    async def action_back(self) -> None:
        """Leave the screen for the one below; Home stays."""
        if len(self.screen_stack) > 1:
            await self.pop_screen()

    def action_jump(self) -> None:
        """Put a letter on everything that can be gone to; pressing it goes there."""
        from .screens.jump import JumpScreen

        self.push_screen(JumpScreen(self.screen))

    def action_help(self) -> None:
        """The guide, at what this screen is about."""
        self.open("help", self.screen.topic if isinstance(self.screen, WhetScreen) else "keys")

    def action_guide(self) -> None:
        """:meth:`action_help`, by a key that no field takes."""
        self.action_help()

    def action_ask(self) -> None:
        """The question box."""
        from .screens.ask import AskCard, go

        self.push_screen(AskCard(), lambda passage: go(self, passage))

    def action_copy(self) -> None:
        """Offer this screen's actions in their other forms."""
        from .screens.cards import CopyCard

        screen = self.screen
        actions = list(screen.actions()) if isinstance(screen, WhetScreen) else []
        if not actions:
            self.notify("Nothing here has another form.", timeout=3)
            return
        self.push_screen(CopyCard(actions))


def main() -> None:
    """Run the app in this terminal."""
    WhetApp().run()
