"""The log viewer: any size at once, following, search; nothing is wrapped and no control character obeyed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Input, Static

from whet.engine import api

from ... import log_window
from ...actions import Action, mcp_call
from ...render.text import plain, printable
from ...render.units import size
from ...widgets.assistant_bar import Advice
from ..base import WhetScreen

FOUND = Style(reverse=True)
HERE = Style(bold=True)


class LogView(ScrollView, can_focus=True):
    """Draws only the lines in view."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "down", show=False, id="log.down"),
        Binding("k", "scroll_up", "up", show=False, id="log.up"),
        Binding("h", "scroll_left", "left", show=False, id="log.left"),
        Binding("space", "page_down", "page down", show=False, id="log.page"),
    ]

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.lines: Sequence[str] = ()
        self.search = ""
        self.place: int | None = None
        """Line of the match that was jumped to."""

    def show(self, lines: Sequence[str]) -> None:
        """Replace the lines; they may grow by later calls."""
        self.lines = lines
        self.virtual_size = Size(max(map(len, lines), default=0), len(lines))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        column, row = self.scroll_offset
        place = row + y
        if place >= len(self.lines):
            return Strip.blank(self.size.width, self.rich_style)
        line = printable(self.lines[place]).expandtabs(4)
        strip = Strip(self._segments(line, HERE if place == self.place else Style()))
        shown = strip.crop_extend(column, column + self.size.width, self.rich_style)
        return shown.apply_style(self.rich_style)

    def _segments(self, line: str, style: Style) -> list[Segment]:
        """The line, with every match marked."""
        wanted, lower = self.search.lower(), line.lower()
        if not wanted or len(lower) != len(line):  # a letter whose small form is longer
            return [Segment(line, style)]
        segments, at = [], 0
        while (found := lower.find(wanted, at)) >= 0:
            segments.append(Segment(line[at:found], style))
            segments.append(Segment(line[found : found + len(wanted)], style + FOUND))
            at = found + len(wanted)
        return [*segments, Segment(line[at:], style)]


class LogScreen(WhetScreen):
    """Opens at the end and follows; scrolling up stops that, `G` goes on."""

    topic = "run"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "search", key_display="/", id="log.search"),
        Binding("n", "next(-1)", "older", id="log.older"),
        Binding("N", "next(1)", "newer", id="log.newer"),
        Binding("g,home", "top", "top", id="log.top"),
        Binding("G,end", "end", "end", key_display="G", id="log.end"),
        Binding("escape", "leave", "back", key_display="esc", id="log.leave"),
    ]

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id
        self.heading = f"log of {run_id}"
        self.window = log_window.LogWindow()
        self.following = True
        self._reading = False

    def body(self) -> ComposeResult:
        yield LogView(id="log")
        yield Static("", id="log-status", markup=False)
        yield Input(placeholder="text to find, in any case", id="log-search")

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one(Input).display = False
        self.query_one(LogView).focus()
        self.watch(self.query_one(LogView), "scroll_y", self._scrolled, init=False)
        self.set_interval(self.whet.seconds_between_looks, self._look)
        self._look()

    def _read(self, lines: int, before: int | None) -> api.LogPage:
        return api.log(self.run_id, lines, before)

    def _look(self) -> None:
        if self.following and self.is_active and not self._reading:
            self.in_background(lambda: log_window.newest(self._read), self._show_newest, group="log")

    def _show_newest(self, page: api.LogPage) -> None:
        if self.following:
            if self.window.show_newest(page):
                self.query_one(LogView).show(self.window.lines)
            self.call_after_refresh(self._to_end)  # the end is known when the lines are laid out
        self._say_where()

    def on_resize(self) -> None:
        self.call_after_refresh(self._to_end)

    def _to_end(self) -> None:
        view = self.query_one(LogView)
        if self.following:
            view.scroll_to(y=view.max_scroll_y, animate=False, immediate=True)

    def _scrolled(self) -> None:
        view = self.query_one(LogView)
        end = view.scroll_y >= view.max_scroll_y
        self.following = end and self.window.at_end
        if self._reading:
            return
        if view.scroll_y == 0 and not self.window.at_top and self.window.lines:
            before = self.window.start
            self._reading = True
            self.in_background(lambda: [self._read(log_window.PAGE, before)], self._add_above, group="log")
        elif end and not self.window.at_end:
            self.window.reach *= 2
            self._read_top(stay=True)
        self._say_where()

    def _add_above(self, pages: list[api.LogPage]) -> None:
        self._reading = False
        view = self.query_one(LogView)
        before = view.scroll_y
        more = self.window.add_above(pages)
        view.show(self.window.lines)
        if view.place is not None:
            view.place += more
        view.scroll_to(y=before + more, animate=False)
        self._say_where()

    # --- moving

    def action_top(self) -> None:
        """The log's first lines."""
        self.window.reach = log_window.TOP
        self._read_top(stay=False)

    def _read_top(self, stay: bool) -> None:
        self.following, self._reading = False, True
        reach = self.window.reach

        def show(read: tuple[api.LogPage, bool]) -> None:
            self._reading = False
            self.window.show_oldest(*read)
            view = self.query_one(LogView)
            view.show(self.window.lines)
            if not stay:
                view.scroll_home(animate=False)
            self._say_where()

        self.in_background(lambda: log_window.oldest(self._read, reach), show, group="log")

    def action_end(self) -> None:
        """The last lines, and those to come."""
        self.following, self._reading = True, False
        self.window.at_end = False  # read anew, whatever is loaded
        self._look()

    def action_leave(self) -> None:
        """Close the search, or the log."""
        box = self.query_one(Input)
        if box.display:
            box.display = False
            self.query_one(LogView).focus()
        else:
            self.dismiss()

    # --- searching

    def action_search(self) -> None:
        """Ask what to look for."""
        box = self.query_one(Input)
        box.display = True
        box.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        view = self.query_one(LogView)
        view.search, view.place = event.value, None
        self.action_leave()
        view.refresh()
        if event.value:
            self.action_next(-1)

    def action_next(self, direction: int) -> None:
        """Jump to the next match above (-1), reading on as far as needed, or below (1)."""
        view = self.query_one(LogView)
        if not view.search:
            self.action_search()
            return
        place = view.place
        if place is None:  # from the edge of what is in view
            top = int(view.scroll_y)
            place = min(len(view.lines), top + view.size.height) if direction < 0 else top - 1
        found = log_window.nearest(view.lines, view.search, place, direction)
        if found is not None:
            self._jump(found)
        elif direction > 0 or self.window.at_top:
            where = "below" if direction > 0 else "above"
            self.notify(f"No match {where}.", timeout=3)
        elif not self._reading:
            self._search_above(view.search)

    def _search_above(self, text: str) -> None:
        """Read pages until one holds a match."""
        before = self.window.start
        self._reading = True
        self.notify("Searching above …", timeout=2)

        def show(pages: list[api.LogPage]) -> None:
            more = sum(len(page.lines) for page in pages)
            self._add_above(pages)
            found = log_window.nearest(self.window.lines, text, more, -1)
            if found is None:
                self.notify("No match above.", timeout=3)
            else:
                self._jump(found)

        self.in_background(lambda: log_window.older_with(self._read, before, text), show, group="log")

    def _jump(self, place: int) -> None:
        view = self.query_one(LogView)
        view.place = place
        self.following = False
        view.scroll_to(y=max(0, place - view.size.height // 2), animate=False)
        view.refresh()
        self._say_where()

    # --- words

    def _say_where(self) -> None:
        window, view = self.window, self.query_one(LogView)
        text = Text(no_wrap=True, overflow="ellipsis")
        if not window.size:
            text.append("The worker has said nothing yet.", "dim")
        else:
            text.append("following" if self.following else "not following (G goes on)", "bold")
            above = "from the top" if window.at_top else f"{size(window.start)} above"
            text.append(f" · {len(window.lines):,} lines, {above}, {size(window.size)} in all")
        if view.search:
            text.append(f" · / {plain(view.search, 30)}: n older, N newer", "dim")
        self.query_one("#log-status", Static).update(text, layout=False)

    def advice(self) -> Sequence[Advice]:
        return (
            Advice("Libraries talk here, and tracebacks end here. Search for an error's name.", "/"),
            Advice("What it means in plain words is among the run's findings.", "esc"),
        )

    def actions(self) -> Sequence[Action]:
        return (
            Action(
                "the last lines of the log",
                f"whet show {self.run_id} --log 100",
                python=f'api.log("{self.run_id}", 100)',
                mcp=mcp_call("run_get", run_id=self.run_id, view="logs"),
            ),
        )
