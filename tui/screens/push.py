"""Push a part of an export to the hub: private unless said otherwise, and never unproven by accident."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Checkbox, Input, RadioButton, RadioSet, Static
from textual.worker import Worker, WorkerState

from whet.engine import api

from ..render.text import printable

PARTS = ("gguf", "adapter", "adapter_gguf", "merged", "merged_4bit", "fp8")


class PushCard(ModalScreen[None]):
    """Asks for the address; the token is the environment's or the hub's own login, never typed here."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "close", id="push.close")]

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id

    def compose(self) -> ComposeResult:
        with Vertical(classes="card"):
            yield Static(Text("Push to the hub", "bold"), classes="card-title")
            yield Input(placeholder="name/repository", id="repo")
            with RadioSet(id="part"):
                for number, name in enumerate(PARTS):
                    yield RadioButton(name, value=number == 0)
            yield Checkbox("private", value=True, id="private")
            yield Static("", id="said", markup=False)
            with Horizontal(classes="card-buttons"):
                yield Button("Push", id="push", variant="primary")
                yield Button("Close", id="close")

    @on(Button.Pressed, "#close")
    def _close(self) -> None:
        self.dismiss()

    @on(Button.Pressed, "#push")
    @on(Input.Submitted, "#repo")
    def _push(self) -> None:
        repo = self.query_one("#repo", Input).value.strip()
        part = PARTS[max(0, self.query_one("#part", RadioSet).pressed_index)]
        private = self.query_one("#private", Checkbox).value
        if not repo:
            self._say("Type the address first: name/repository", "yellow")
            return
        self._say("Pushing …", "dim")
        self.run_worker(
            lambda: api.push(self.run_id, repo, part, private=private, tell=self._tell),  # type: ignore[arg-type]
            thread=True,
            exclusive=True,
            exit_on_error=False,
        )

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        event.stop()
        if event.state is WorkerState.SUCCESS:
            self._say(f"It is at {event.worker.result}", "green")
        elif event.state is WorkerState.ERROR:
            self._say(str(event.worker.error), "bold red")

    def _tell(self, event: api.Event) -> None:
        """From the upload's thread; an upload goes on when the card is closed."""
        if isinstance(event, api.PhaseEvent) and event.total:
            share = (event.done or 0) / event.total
            self.app.call_from_thread(self._say, f"Uploading {event.detail} … {share:.0%} are there", "dim")

    def _say(self, words: str, style: str) -> None:
        if not self.is_attached:
            return
        self.query_one("#said", Static).update(Text(printable(words), style))
