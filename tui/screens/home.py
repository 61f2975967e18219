"""Home: the machine, all runs whoever started them, drafts, what was used before, the demo one key away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import Static

from ..actions import Action, mcp_call
from ..widgets.assistant_bar import Advice
from ..widgets.run_table import RunTable
from .base import WhetScreen

if TYPE_CHECKING:
    from whet.engine.api import RunSummary


class HomeScreen(WhetScreen):
    """Useful at once: the first paint has its frame, the figures follow from threads."""

    heading = "whet"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new", "new run", id="home.new"),
        Binding("x", "demo", "demo", id="home.demo"),
        Binding("d", "app.open('doctor')", "doctor", id="home.doctor"),
        Binding("comma", "app.open('settings')", "settings", key_display=",", id="home.settings"),
    ]

    def body(self) -> ComposeResult:
        yield Static("…", id="machine", markup=False)
        with Container(id="home"):
            yield RunTable(id="runs")

    def on_mount(self) -> None:
        super().on_mount()
        self.call_after_refresh(self.look)

    def look(self) -> None:
        """Read runs now and again every second."""
        self.set_interval(self.whet.seconds_between_looks, self._look_at_runs)
        self._look_at_runs()

    def _look_at_runs(self) -> None:
        from whet.engine import api

        self.in_background(api.runs, self._show_runs, group="runs")

    def _show_runs(self, runs: list[RunSummary]) -> None:
        self.query_one(RunTable).show(runs)
        self.say()

    def advice(self) -> Sequence[Advice]:
        return (Advice("No run yet. The demo trains a tiny model from start to proof in a minute.", "x"),)

    def actions(self) -> Sequence[Action]:
        return (
            Action("run the demo", cli="whet demo", mcp=mcp_call("plan_create", data="demo", model="demo")),
        )
