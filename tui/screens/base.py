"""What every screen has: a title line, the assistant bar, work in the background, errors as cards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widgets import Footer, Static
from textual.worker import Worker, WorkerState

from ..actions import Action
from ..widgets.assistant_bar import Advice, AssistantBar

if TYPE_CHECKING:
    from ..app import WhetApp

T = TypeVar("T")


class WhetScreen(Screen[None]):
    """Subclasses give :meth:`body`, :meth:`advice` and :meth:`actions`, and name their place in the guide."""

    heading = ""
    topic = "first-steps"
    """Section of the guide that F1 opens here."""
    repeated: ClassVar[frozenset[str]] = frozenset()
    """Groups of work that a timer repeats: an error of theirs is shown once, not at each look."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, str] = {}

    def compose(self) -> ComposeResult:
        yield Static(self.heading, classes="heading", id="heading", markup=False)
        yield from self.body()
        yield AssistantBar(id="assistant")
        yield Footer(show_command_palette=False)

    def body(self) -> ComposeResult:
        """The widgets between title and assistant bar."""
        return
        yield

    def advice(self) -> Sequence[Advice]:
        """What the assistant says now, most important first."""
        return ()

    def actions(self) -> Sequence[Action]:
        """What can be done here, for `y` to copy; the first is the likeliest."""
        return ()

    @property
    def whet(self) -> WhetApp:
        """The app, typed."""
        return cast("WhetApp", self.app)

    def leaving(self) -> None:
        """Called before the app ends: what was begun here is to be kept."""

    @property
    def about(self) -> str | None:
        """The run that this screen is about."""
        return None

    def focus_finding(self, id: str) -> bool:
        """Go to a finding that is listed here; False where it is not."""
        return False

    def focus_setting(self, key: str) -> bool:
        """Go to a recipe key's field; False where this screen has none."""
        return False

    def on_mount(self) -> None:
        self.say()

    def on_screen_resume(self) -> None:
        self.say()

    def say(self) -> None:
        """Show the advice again; to be called when what it follows from changed."""
        self.query_one("#assistant", AssistantBar).show(self.advice())

    def set_heading(self, text: str) -> None:
        """Replace the title line."""
        self.query_one("#heading", Static).update(text)

    def in_background(self, work: Callable[[], T], done: Callable[[T], object], group: str) -> None:
        """Run ``work`` on a thread and hand what it returns to ``done``; a later one of a group replaces it.

        Errors become cards: whet's own with what to do next, any other with the way to a debug bundle.
        """

        def run() -> None:
            result = work()
            if not worker.is_cancelled and self.is_attached:
                self.app.call_from_thread(done, result)

        worker = self.run_worker(run, thread=True, group=group, exclusive=True, exit_on_error=False)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        group = event.worker.group
        if event.state is WorkerState.SUCCESS:
            self._told.pop(group, None)
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            event.stop()
            text = str(event.worker.error)
            if group not in self.repeated or self._told.get(group) != text:
                self._told[group] = text
                self.failed(event.worker.error)

    def failed(self, error: BaseException) -> None:
        """Show an error of background work as a card."""
        from .cards import ErrorCard

        self.app.push_screen(ErrorCard(error))
