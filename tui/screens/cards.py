"""Cards over a screen: an error with what to do next, a question, the forms of an action to copy."""

from __future__ import annotations

import errno
import traceback
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, OptionList, Static
from textual.widgets.option_list import Option

from ..actions import IMPORT, Action
from ..render.text import plain, printable

LONGEST_TRACE = 4000
OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO}
"""Errors that are the machine's, not a fault of whet: a trace would tell nobody anything."""


class ErrorCard(ModalScreen[None]):
    """What failed, and what to do next. The screen below stays as it was."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "close", id="card.close"),
        Binding("b", "bundle", "debug bundle", id="card.bundle"),
    ]

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def compose(self) -> ComposeResult:
        from whet.engine.api import WhetError

        with Vertical(classes="card"):
            if isinstance(self.error, WhetError):
                yield Static(Text(self.error.code, "bold red"), classes="card-title")
                yield Static(Text(printable(self.error.message)))
                yield Static(Text(printable(self.error.hint), "bold"))
                yield Static(Text("esc closes", "dim"))
                return
            if isinstance(self.error, OSError) and self.error.errno in OF_THE_DISK:
                yield Static(Text("The disk refused", "bold red"), classes="card-title")
                yield Static(Text(plain(str(self.error), 400)))
                yield Static(Text("Make room, or name a folder that can be written in WHET_HOME.", "bold"))
                yield Static(Text("esc closes; runs go on", "dim"))
                return
            lines = "".join(traceback.format_exception(self.error))[-LONGEST_TRACE:]
            yield Static(Text("This should not have happened", "bold red"), classes="card-title")
            yield Static(Text(plain(f"{type(self.error).__name__}: {self.error}", 400)))
            with VerticalScroll(classes="card-body"):
                yield Static(Text(printable(lines), "dim"))
            yield Static(Text("b writes a debug bundle without secrets · esc closes; runs go on", "dim"))

    def action_bundle(self) -> None:
        """Write a redacted archive to attach to a bug report."""
        from pathlib import Path

        from whet.engine import api

        target = Path.cwd() / "whet-bundle.tar.gz"
        self.run_worker(lambda: api.bundle(api.doctor(), target), thread=True, exit_on_error=False)
        self.app.notify(f"Writing {target}")


class Question(ModalScreen[bool]):
    """Yes or no; what is destroyed or started is named."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes", id="question.yes"),
        Binding("n,escape", "answer(False)", "no", id="question.no"),
    ]

    def __init__(self, text: str, yes: str = "Yes", no: str = "No") -> None:
        super().__init__()
        self.text, self.words = text, (yes, no)

    def compose(self) -> ComposeResult:
        with Vertical(classes="card"):
            yield Static(Text(printable(self.text)))
            with Horizontal(classes="card-buttons"):
                yield Button(f"{self.words[0]} (y)", id="yes", variant="primary")
                yield Button(f"{self.words[1]} (n)", id="no")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        """By key."""
        self.dismiss(yes)


class CopyCard(ModalScreen[None]):
    """The same action as CLI, YAML, Python and MCP call; Enter copies the one chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "dismiss", "close", id="copy.close")]

    def __init__(self, actions: list[Action]) -> None:
        super().__init__()
        self.texts = [(action, name, text) for action in actions for name, text in action.forms().items()]

    def compose(self) -> ComposeResult:
        with Vertical(classes="card"):
            yield Static(Text("Copy as", "bold"))
            yield OptionList(
                *(
                    Option(
                        Text.assemble(
                            (f"{name:<7}", "bold cyan"),
                            f"{action.label:<23} ",
                            (plain(text.removeprefix(IMPORT), 200), "dim"),
                            no_wrap=True,
                            overflow="ellipsis",
                        )
                    )
                    for action, name, text in self.texts
                ),
                id="forms",
            )
            with VerticalScroll(id="form", can_focus=False):
                yield Static("", id="form-text", markup=False)
            yield Static(Text("enter copies to the clipboard of your terminal · esc closes", "dim"))

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """The whole text, for terminals that keep their clipboard to themselves."""
        self.query_one("#form-text", Static).update(Text(printable(self.texts[event.option_index][2])))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        _, name, text = self.texts[event.option_index]
        self.app.copy_to_clipboard(text)
        self.app.notify(f"Copied the {name} form", timeout=3)
        self.dismiss()
