"""Compare: the losses of two to six runs in one plot, and beside it what sets them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from whet.engine import api

from ...actions import Action, mcp_call
from ...render.curves import Values, finite, smooth
from ...widgets.assistant_bar import Advice
from ...widgets.curve import Curve, Line
from ..base import WhetScreen
from ..room import mark_room
from ..run.figures import number
from ..run.look import Look, look
from ..run.panels import Page
from .compared import LETTERS, Compared, differing, settings_of, winner
from .tables import answers_page, legend, metrics_table, recipes_table

AXES = {"step": "step", "tokens": "tokens", "seconds": "seconds of training"}
TABS = ("curves", "figures", "recipes", "answers")
PANELS = TABS[1:]
MARKS = 8
"""Letters along a curve."""


class CompareScreen(WhetScreen):
    """Reads on while runs go on."""

    topic = "compare"
    heading = "compare"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "axis", "axis", id="compare.axis"),
        Binding("h", "held_out", "held out", id="compare.held_out"),
        Binding("g", "log_scale", "log scale", show=False, id="compare.log_scale"),
        Binding("m", "smoothing", "smoothing", show=False, id="compare.smoothing"),
        Binding("z", "all", "zoom out", show=False, id="compare.zoom_out"),
        Binding("o", "best", "open the best", id="compare.best"),
        *(
            Binding(str(number), f"tab('{name}')", name, show=False, id=f"compare.tab_{name}")
            for number, name in enumerate(TABS, start=1)
        ),
    ]

    def __init__(self, run_ids: Sequence[str]) -> None:
        super().__init__()
        self.runs = [Compared(letter, run_id) for letter, run_id in zip(LETTERS, run_ids, strict=False)]
        self.axis = "step"
        self.held_out = self.logarithmic = False
        self.smoothed = True
        self.tab, self.panel = "curves", "figures"
        self.room = "small"
        self._looking = False

    def body(self) -> ComposeResult:
        yield Static("", id="compare-legend", markup=False)
        yield Static("", id="compare-tabs", markup=False)
        with Vertical(id="compare-body"):
            yield Curve("loss", "Reading the runs …", id="curve-compare", plain=self.whet.kept.ascii)
            with Horizontal(id="compare-panels"):
                for name in PANELS:
                    yield Page(name, id=f"panel-{name}")

    def on_mount(self) -> None:
        super().on_mount()
        self._arrange()
        self._timer = self.set_interval(self.whet.seconds_between_looks, self.look_again)
        self.in_background(lambda: [_settings(run.run_id) for run in self.runs], self._show_settings, "plans")
        self.look_again()

    def on_resize(self, event: events.Resize) -> None:
        self.room = mark_room(self, event.size)
        self._arrange()
        self.call_after_refresh(self._draw)

    # --- looking

    def look_again(self) -> None:
        """Read what is new of each run."""
        if self._looking or not self.is_active:
            return
        self._looking = True
        wanted = [(run.run_id, run.offset) for run in self.runs]
        self.in_background(lambda: _looks(wanted), self._take, group="look")

    def _take(self, seen: list[Look] | api.WhetError) -> None:
        if isinstance(seen, api.WhetError):  # not looked at again: one card is enough
            self._timer.stop()
            self.failed(seen)
            return
        self._looking = False
        first = self.runs[0].seen is None
        for run, one in zip(self.runs, seen, strict=True):
            run.take(one)
        if first or any(one.events or one.progress for one in seen):
            self._draw()

    def _show_settings(self, settings: list[dict[str, object]]) -> None:
        for run, one in zip(self.runs, settings, strict=True):
            run.settings = one
        self._draw()

    # --- drawing

    def _draw(self) -> None:
        ascii = self.whet.kept.ascii
        self.query_one("#compare-legend", Static).update(legend(self.runs, self.size.width - 2), layout=False)
        self._show_tabs()
        self._draw_curves(ascii)
        width = self.query_one("#compare-panels").size.width or self.size.width
        if self.room == "large":
            width = width // len(PANELS)
        self.query_one("#panel-figures", Page).show(metrics_table(self.runs, width - 4, ascii=ascii))
        self.query_one("#panel-recipes", Page).show(recipes_table(self.runs, width - 4))
        self.query_one("#panel-answers", Page).show(answers_page(self.runs, width - 4))
        self.say()

    def _draw_curves(self, ascii: bool) -> None:
        curve = self.query_one(Curve)
        lines = [line for run in self.runs for line in self._lines(run)]
        what = "held-out loss" if self.held_out else "loss"
        title = f"{what}{' (log)' if self.logarithmic else ''} by {AXES[self.axis]}"
        curve.show(lines, title, log=self.logarithmic)

    def _lines(self, run: Compared) -> list[Line]:
        """A run's curve, with its letter along it, so that colour is not all that tells it apart."""
        curves = run.progress.curves
        if self.held_out:
            steps = sorted(run.progress.evals)
            x, y = finite(steps, [run.progress.evals[step].loss for step in steps])
            x = self._along(curves.values(self.axis), curves.step, x)
        else:
            x, y = finite(curves.values(self.axis), curves.loss)
            y = smooth(y) if self.smoothed else y
        if not len(x):
            return []
        look = run.letter.lower()
        every = max(1, len(x) // MARKS)
        begin = min(len(x) - 1, every * LETTERS.index(run.letter) // len(self.runs))
        return [Line(x, y, look), Line(x[begin::every], y[begin::every], look, run.letter)]

    def _along(self, axis: Sequence[float], steps: Sequence[float], wanted: Values) -> Values:
        """Where evaluations stand on the axis; one before the first step stands at its beginning."""
        if self.axis == "step" or not len(steps):
            return wanted
        found: Values = np.interp(wanted, np.array(steps), np.array(axis), left=0.0)
        return found

    def _show_tabs(self) -> None:
        shown = self._shown()
        text = Text(no_wrap=True, overflow="ellipsis")
        for number_, name in enumerate(TABS, start=1):
            click = {"@click": f"screen.tab('{name}')"}
            text.append(f" {number_} ", Style(meta=click, dim=True))
            text.append(name, Style(meta=click, reverse=name in shown, bold=True))
        self.query_one("#compare-tabs", Static).update(text, layout=False)

    def _shown(self) -> set[str]:
        if self.room == "large":
            return set(TABS)
        return {self.tab} if self.room == "small" else {"curves", self.panel}

    def _arrange(self) -> None:
        shown = self._shown()
        self.query_one(Curve).display = "curves" in shown
        self.query_one("#compare-panels").display = bool(shown & set(PANELS))
        for name in PANELS:
            self.query_one(f"#panel-{name}").display = name in shown

    # --- keys

    def action_tab(self, name: str) -> None:
        """Show the curves or a panel."""
        self.tab = name
        if name in PANELS:
            self.panel = name
        self._arrange()
        if name in PANELS:
            self.query_one(f"#panel-{name}").focus()
        self.call_after_refresh(self._draw)

    def action_axis(self) -> None:
        """By step, then by tokens, then by time."""
        axes = list(AXES)
        self.axis = axes[(axes.index(self.axis) + 1) % len(axes)]
        self.query_one(Curve).reset()
        self._draw()

    def action_held_out(self) -> None:
        """Training losses, or held-out losses."""
        self.held_out = not self.held_out
        self._draw()

    def action_log_scale(self) -> None:
        """Switch the axis of losses."""
        self.logarithmic = not self.logarithmic
        self._draw()

    def action_smoothing(self) -> None:
        """Each step, or means."""
        self.smoothed = not self.smoothed
        self._draw()

    def action_all(self) -> None:
        """After zooming with the mouse wheel."""
        self.query_one(Curve).reset()
        self._draw()

    def action_best(self) -> None:
        """Open the run with the lowest held-out loss."""
        best = winner(self.runs)
        if best is None:
            self.notify("No run is best: held-out losses are missing or the same.", timeout=4)
            return
        self.whet.open("run", best.run_id)

    # --- words

    def advice(self) -> Sequence[Advice]:
        best = winner(self.runs)
        if best is None or best.progress.best_eval is None:
            return (Advice("Stars mark the best of a column; s draws over tokens or time.", "s"),)
        loss = number(best.progress.best_eval.loss)
        said = [Advice(f"{best.letter} has the lowest held-out loss, {loss}.", "o")]
        known = [run.settings for run in self.runs if run.settings]
        keys = list(differing(known)) if len(known) > 1 else []
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            said.append(Advice(f"The recipes differ in {', '.join(keys[:3])}{more}.", "3"))
        return said

    def actions(self) -> Sequence[Action]:
        return [
            Action(
                f"figures of {run.letter}",
                f"whet show {run.run_id}",
                python=f'api.run("{run.run_id}").steps',
                mcp=mcp_call("run_get", run_id=run.run_id, view="metrics"),
            )
            for run in self.runs
        ]


def _looks(wanted: list[tuple[str, int]]) -> list[Look] | api.WhetError:
    try:
        return [look(run_id, offset) for run_id, offset in wanted]
    except api.WhetError as error:
        return error


def _settings(run_id: str) -> dict[str, object]:
    """Empty for a job on files that no run made."""
    run = api.find(run_id)
    return settings_of(run.load_plan()) if run.plan.exists() else {}
