"""The steps on one line: where one is, what is done, what needs a look; each can be clicked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.events import Click
from textual.message import Message
from textual.widgets import Static

if TYPE_CHECKING:
    from .advice import Step

NAMES = {
    "data": "1 Data",
    "model": "2 Model",
    "template": "3 Template",
    "goal": "4 Goal",
    "settings": "5 Settings",
    "review": "6 Review",
    "recipe": "r Recipe",
}


class RailStep(Static):
    """One step."""

    class Wanted(Message):
        """Go there."""

        def __init__(self, step: Step) -> None:
            super().__init__()
            self.step = step

    def __init__(self, step: Step) -> None:
        super().__init__(NAMES[step], id=f"rail-{step}", markup=False, classes="rail-step")
        self.step = step

    def on_click(self, event: Click) -> None:
        event.stop()
        self.post_message(self.Wanted(self.step))


class BackStep(Static):
    """Out of the screen, for the mouse."""

    def __init__(self) -> None:
        super().__init__("‹", markup=False, classes="rail-step")

    async def on_click(self, event: Click) -> None:
        event.stop()
        await self.run_action("screen.leave")


class Rail(Horizontal):
    """All steps, and the recipe where it has no pane of its own."""

    shown: tuple[Step, dict[str, str]] | None = None

    def compose(self) -> ComposeResult:
        yield BackStep()
        for step in NAMES:
            yield RailStep(step)  # type: ignore[arg-type]

    def show(self, now: Step, marks: dict[str, str]) -> None:
        """``marks``: step -> ``✓`` or ``!`` behind its name."""
        if (now, marks) == self.shown:
            return
        self.shown = now, marks
        for one in self.query(RailStep):
            here = one.step == now
            one.set_class(here, "-here")
            mark = marks.get(one.step, "")
            style = {"✓": "green", "!": "bold red"}.get(mark, "")
            name = Text(NAMES[one.step], "bold reverse" if here else "")
            one.update(Text.assemble(name, (f" {mark}" if mark else "", style)))
