"""A plot with its title: lines and marks over steps, in braille or in ASCII, never first shown empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Grid, Vertical
from textual.strip import Strip
from textual.widgets import Static
from textual_hires_canvas import Canvas
from textual_plot import HiResMode, PlotWidget
from textual_plot.plot_widget import Legend

from ..render.ascii_plot import Dots, ascii_plot
from ..render.curves import PowerTicks, Ticks, Values, WholeTicks, logarithmic, thin, tick

MARGIN = 8
"""Columns left of the axis, for numbers."""
PADDING = 2
COLUMNS_A_TICK, ROWS_A_TICK = 14, 2


@dataclass(frozen=True)
class Line:
    """One curve: ``look`` names its style (raw, line, a … f) or, for single points, a mark."""

    x: Values
    y: Values
    look: str = "line"
    mark: str = ""
    """A character at each point, instead of a line."""


class FullCanvas(Canvas):
    """Draws something on every line: an empty one without a style ends Textual where NO_COLOR is set."""

    def render_line(self, y: int) -> Strip:
        strip = super().render_line(y)
        return strip if strip.cell_length else Strip.blank(self.size.width, self.rich_style)


class Plot(PlotWidget, can_focus=False):
    """On full canvases, and without keys of its own: they would hide the screen's."""

    def compose(self) -> ComposeResult:
        with Grid():
            for part in ("margin-top", "margin-left", "plot", "margin-bottom"):
                yield FullCanvas(1, 1, id=part)
        yield Legend(id="legend")


class Curve(Vertical):
    """Redrawn by :meth:`show`; zooms with the mouse wheel, :meth:`reset` shows all again."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"curve--{look}" for look in ("raw", "line", "eval", "resumed", "a", "b", "c", "d", "e", "f")
    }

    def __init__(self, title: str, nothing: str, id: str, *, plain: bool = False) -> None:
        super().__init__(id=id, classes="curve")
        self.heading, self.nothing, self.plain = title, nothing, plain
        self._lines: Sequence[Line] = ()
        self._log = False
        self._limits: tuple[float, float] | None = None
        self._single = False

    def compose(self) -> ComposeResult:
        yield Static(Text(self.heading, "bold"), classes="curve-title", markup=False)
        yield Static(Text(self.nothing, "dim"), classes="curve-words", markup=False)
        plot = Plot(classes="curve-plot")
        plot.display = False
        yield plot

    def on_mount(self) -> None:
        plot = self.query_one(PlotWidget)
        plot.margin_left, plot.margin_top, plot.margin_bottom = MARGIN, 0, 1
        plot.set_x_formatter(WholeTicks(lambda: max(2, self.size.width // COLUMNS_A_TICK)))

    def on_resize(self) -> None:
        if self.plain and self._lines:
            self._draw_plain()

    def reset(self) -> None:
        """Show everything again after zooming."""
        plot = self.query_one(PlotWidget)
        plot.set_xlimits(None, None)
        plot.set_ylimits(None, None)
        self._limits, self._single = None, False
        if self._lines:
            self._keep_flat_lines_in_view(plot)

    def show(
        self,
        lines: Sequence[Line],
        title: str | None = None,
        *,
        log: bool = False,
        upright: Sequence[float] = (),
    ) -> None:
        """Draw; ``upright`` are places of vertical lines, ``log`` makes the axis of values logarithmic."""
        if title is not None:
            words = Text(title, "bold", no_wrap=True, overflow="ellipsis")
            self.query_one(".curve-title", Static).update(words, layout=False)
        scaled = [logarithmic(one.x, one.y) for one in lines] if log else [(one.x, one.y) for one in lines]
        self._lines = [
            Line(*(points if one.mark else thin(*points)), one.look, one.mark)
            for one, points in zip(lines, scaled, strict=True)
            if len(points[0])
        ]
        self._log = log
        nothing, plot = self.query_one(".curve-words", Static), self.query_one(PlotWidget)
        plot.display = bool(self._lines) and not self.plain
        nothing.display = not plot.display
        if not self._lines:
            nothing.update(Text(self.nothing, "dim"), layout=False)
        elif self.plain:
            self._draw_plain()
        else:
            self._draw(plot, upright)

    def _draw(self, plot: PlotWidget, upright: Sequence[float]) -> None:
        plot.clear()
        plot.set_y_formatter((PowerTicks if self._log else Ticks)(self._rows))
        self._keep_flat_lines_in_view(plot)
        for place in upright:
            plot.add_v_line(place, self._style("resumed"))
        for line in self._lines:
            style = self._style(line.look)
            if line.mark or len(line.x) == 1:
                plot.scatter(line.x, line.y, marker=line.mark or "•", marker_style=style)
            else:
                plot.plot(line.x, line.y, line_style=style, hires_mode=HiResMode.BRAILLE)

    def _keep_flat_lines_in_view(self, plot: PlotWidget) -> None:
        """A constant, or a single step, has no range; room is set once, so that zooming stays possible."""
        left, right = min(line.x[0] for line in self._lines), max(line.x[-1] for line in self._lines)
        if (left == right) != self._single:
            self._single = left == right
            plot.set_xlimits(*((left - 1, right + 1) if self._single else (None, None)))
        low = min(float(line.y.min()) for line in self._lines)
        high = max(float(line.y.max()) for line in self._lines)
        room = abs(low) / 10 or 0.5
        limits = (low - room, high + room) if high - low <= abs(high) * 1e-9 else None
        if limits != self._limits:
            plot.set_ylimits(*(limits or (None, None)))
            self._limits = limits

    def _draw_plain(self) -> None:
        words = self.query_one(".curve-words", Static)
        marks = {"raw": ".", "line": "*"}
        dots = [
            Dots(one.mark if one.mark.isascii() and one.mark else marks.get(one.look, one.look), one.x, one.y)
            for one in self._lines
        ]
        label = (lambda power: f"{10.0**power:.2g}") if self._log else tick
        drawn = ascii_plot(dots, self.size.width - PADDING, self.size.height - 1, label)
        words.update(Text(drawn, no_wrap=True), layout=False)

    def _rows(self) -> int:
        """How many numbers there is room for beside the axis."""
        return max(2, self.size.height // ROWS_A_TICK)

    def _style(self, look: str) -> str:
        return str(self.get_component_rich_style(f"curve--{look}"))
