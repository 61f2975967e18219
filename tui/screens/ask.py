"""The question box: passages of the guide that answer, and the way to what they are about."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from ..assistant import writer
from ..assistant.passages import Passage
from ..assistant.search import Index
from ..render.text import plain, printable
from .base import WhetScreen
from .help import HelpScreen

if TYPE_CHECKING:
    from ..app import WhetApp

OF_A_RUN = ("run", "chat", "export")
SHOWN = 240
"""Characters of a passage in the list."""


@cache
def index() -> Index:
    """Built at the first question."""
    return Index()


class AskCard(ModalScreen[Passage | None]):
    """Type, and passages appear; Enter goes where one is about. A model writes only if it was named."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "close", id="ask.close"),
        Binding("down", "to_list", "passages", show=False, id="ask.list"),
        Binding("f2", "write", "let the model write", id="ask.write"),
    ]

    def __init__(self, question: str = "") -> None:
        super().__init__()
        self.question = question
        self.found: list[Passage] = []

    def compose(self) -> ComposeResult:
        with Vertical(classes="card"):
            yield Input(
                self.question, placeholder="Ask: why is my loss zero? · D07 · adapter.rank", id="question"
            )
            yield OptionList(id="passages")
            yield Static("", id="written", markup=False)
            model = " · F2 lets your model write from these" if writer.configured() else ""
            yield Static(Text(f"↓ passages · enter goes there · esc closes{model}", "dim"))

    def on_mount(self) -> None:
        self._search(self.question)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._search(event.value)

    @on(Input.Submitted)
    def _entered(self) -> None:
        if self.found:
            self.dismiss(self.found[0])

    def _search(self, question: str) -> None:
        """An index of a few hundred passages answers in a millisecond, so at each letter."""
        self.question = question
        self.found = index().ask(question) if question.strip() else []
        shown = self.query_one("#passages", OptionList)
        shown.clear_options()
        for one in self.found:
            head = Text.assemble((f"{one.title}", "bold"), (f"  {one.kind}", "dim"))
            shown.add_option(Option(head.append(f"\n{plain(one.text, SHOWN)}\n", "")))
        if question.strip() and not self.found:
            shown.add_option(Option(Text("Nothing in the guide has these words.", "dim"), disabled=True))

    def action_to_list(self) -> None:
        """From the box to its answers."""
        shown = self.query_one("#passages", OptionList).focus()
        shown.highlighted = 0 if self.found else None

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.found[event.option_index])

    def action_write(self) -> None:
        """Have the configured model answer from the passages found."""
        if not writer.configured():
            self._show_written("No model is named: set WHET_ASSISTANT to a GGUF file or a server's address.")
            return
        question, found = self.question, list(self.found)
        self.query_one("#written", Static).update("writing …")
        self.run_worker(lambda: self._write(question, found), thread=True, group="write", exclusive=True)

    def _write(self, question: str, found: list[Passage]) -> None:
        from whet.engine.api import WhetError

        try:
            answer = writer.write(question, found)
        except WhetError as error:
            answer = str(error)
        self.app.call_from_thread(self._show_written, answer)

    def _show_written(self, answer: str) -> None:
        if self.is_attached:
            self.query_one("#written", Static).update(Text(printable(answer)))


def go(app: WhetApp, passage: Passage | None) -> None:
    """Open what a passage is about: a setting's field, a finding's page, a screen, a place in the guide."""
    if passage is None:
        return
    while isinstance(app.screen, HelpScreen):  # what is asked there is meant of the screen it was opened on
        app.pop_screen()
    screen = app.screen
    assert isinstance(screen, WhetScreen)
    seek = {"setting": screen.focus_setting, "finding": screen.focus_finding}.get(passage.kind)
    if passage.kind == "screen":
        _open(app, screen, passage)
    elif seek is not None and seek(passage.target):
        screen.say()
    else:
        app.open("help", passage)


def _open(app: WhetApp, screen: WhetScreen, passage: Passage) -> None:
    if passage.target == "compare":
        app.notify("Mark 2 to 6 runs on Home with space, then press =.", timeout=5)
    elif passage.target not in OF_A_RUN:
        app.open(passage.target)
    elif screen.about is None:
        app.notify("That is about a run: choose one on Home first.", timeout=5)
    else:
        app.open(passage.target, screen.about)
