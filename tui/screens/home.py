"""Home: the machine, all runs whoever started them, drafts, what was used before, the demo one key away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import DataTable, OptionList, Static
from textual.widgets.option_list import Option

from .. import drafts
from ..actions import Action, chat_action, export_action, mcp_call, mcp_start
from ..home_advice import home_advice, machine_line
from ..render.text import plain
from ..widgets.assistant_bar import Advice
from ..widgets.run_table import RunTable
from .base import WhetScreen

if TYPE_CHECKING:
    from whet.engine.api import Machine, RunSummary

COMPARED = 6
"""Runs that Compare overlays at most."""


class HomeScreen(WhetScreen):
    """Useful at once: the first paint has its frame, the figures follow from threads."""

    heading = "whet"
    repeated = frozenset({"runs"})
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "app.open('new')", "new run", id="home.new"),
        Binding("x", "demo", "demo", id="home.demo"),
        Binding("c", "with_run('chat')", "chat", id="home.chat"),
        Binding("e", "with_run('export')", "export", id="home.export"),
        Binding("equals_sign", "compare", "compare", key_display="=", show=False, id="home.compare"),
        Binding("delete", "trash", "trash", show=False, id="home.trash"),
        Binding("u", "undo", "undo", show=False, id="home.undo"),
        Binding("d", "app.open('doctor')", "doctor", id="home.doctor"),
        Binding("q", "app.quit", "quit", id="home.quit"),
        Binding("comma", "app.open('settings')", "settings", key_display=",", show=False, id="home.settings"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[RunSummary] | None = None
        self.machine: Machine | None = None
        self.thrown: list[str] = []

    def body(self) -> ComposeResult:
        yield Static("", id="machine", markup=False)
        with Container(id="home"):
            yield RunTable(id="runs")
            yield OptionList(id="before")

    def on_mount(self) -> None:
        super().on_mount()
        self.call_after_refresh(self._begin)

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        self._show_before()

    def _begin(self) -> None:
        """After the first paint: the engine is imported by the threads that ask it."""
        self.in_background(_machine, self._show_machine, group="machine")
        self._look()
        self.set_interval(self.whet.seconds_between_looks, self._look)

    def _look(self) -> None:
        if self.is_active:  # Textual calls the screen below another one current, too
            self.in_background(_runs, self._show_runs, group="runs")

    def _show_machine(self, seen: tuple[Machine, str]) -> None:
        self.machine, hub = seen
        line = Text(machine_line(self.machine, hub), no_wrap=True, overflow="ellipsis")
        self.query_one("#machine", Static).update(line)
        self.say()

    def _show_runs(self, runs: list[RunSummary]) -> None:
        if runs == self.runs:
            return  # nothing to redraw
        self.runs = runs
        self.query_one(RunTable).show(runs)
        self.say()

    def _show_before(self) -> None:
        """Drafts, then data sets and models of earlier times; Enter starts a new run with one."""
        before = self.query_one("#before", OptionList)
        before.clear_options()
        before.border_title = "drafts and used before"
        kept = self.whet.kept
        entries = [("draft", name) for name in drafts.names()]
        entries += [("data", one) for one in kept.data] + [("model", one) for one in kept.models]
        for kind, name in entries:
            before.add_option(Option(Text.assemble((f"{kind:<6}", "dim"), plain(name, 60)), f"{kind} {name}"))
        if not entries:
            before.add_option(Option(Text("nothing yet: drafts and data appear here", "dim"), disabled=True))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        kind, _, name = str(event.option_id).partition(" ")
        source = drafts.path(name) if kind == "draft" else {f"{kind}": name}
        self.whet.open("new", source)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        self.whet.open("run", event.row_key.value)

    @property
    def about(self) -> str | None:
        """The run under the cursor."""
        return self.query_one(RunTable).chosen

    def advice(self) -> Sequence[Advice]:
        return home_advice(self.runs, self.machine, drafts.names())

    def actions(self) -> Sequence[Action]:
        demo = Action(
            "run the demo",
            "whet demo",
            python='plan = api.plan(api.recipe("demo"))\napi.start(plan, started_by="python")',
            mcp=mcp_start("demo", data="demo", model="demo"),
        )
        chosen = self.query_one(RunTable).chosen
        listed = Action("list runs", "whet runs", python="api.runs()", mcp=mcp_call("job_list"))
        if chosen is None:
            return (demo, listed)
        shown = Action(
            "look at the run",
            f"whet show {chosen}",
            python=f"api.run({chosen!r})",
            mcp=mcp_call("run_get", run_id=chosen),
        )
        trained = self.query_one(RunTable).trained or chosen
        others = chat_action(trained, "Hello"), export_action(trained, ["q4_k_m"], False)
        return (shown, *others, listed, demo)

    def action_demo(self) -> None:
        """Plan and start the demo, then watch it."""
        self.in_background(_start_demo, lambda run: self.whet.open("run", run), group="start")
        self.notify("Planning the demo …", timeout=3)

    def action_with_run(self, screen: str) -> None:
        """Open a screen about the weights of the run under the cursor."""
        chosen = self.query_one(RunTable).trained
        if chosen is None:
            self.notify("There is no run yet: n starts one, x the demo.", timeout=4)
            return
        self.whet.open(screen, chosen)

    def action_compare(self) -> None:
        """Overlay the marked runs."""
        marked = self.query_one(RunTable).marked
        if not 2 <= len(marked) <= COMPARED:
            self.notify(f"Mark 2 to {COMPARED} runs with space; {len(marked)} are marked.", timeout=4)
            return
        self.whet.open("compare", marked)

    def action_trash(self) -> None:
        """Throw the run under the cursor away; `u` brings it back."""
        chosen = self.query_one(RunTable).chosen
        if chosen is not None:
            self.in_background(lambda: _trash(chosen), self._trashed, group="trash")

    def _trashed(self, run_id: str) -> None:
        self.thrown.append(run_id)
        self.notify(f"{run_id} is in the trash; u brings it back.", timeout=6)
        self._look()

    def action_undo(self) -> None:
        """Bring the run back that was thrown away last."""
        if not self.thrown:
            self.notify("Nothing was thrown away since the start.", timeout=3)
            return
        run_id = self.thrown.pop()
        self.in_background(lambda: _restore(run_id), lambda _: self._look(), group="trash")


# The façade's functions, imported on the threads that call them.


def _machine() -> tuple[Machine, str]:
    from whet.engine import api

    return api.machine(), api.hub_login()


def _runs() -> list[RunSummary]:
    from whet.engine import api

    return api.runs()


def _start_demo() -> str:
    from whet.engine import api

    return api.start(api.plan(api.recipe("demo")), started_by="tui")


def _trash(run_id: str) -> str:
    from whet.engine import api

    return api.trash(run_id)


def _restore(run_id: str) -> str:
    from whet.engine import api

    return api.restore(run_id)
