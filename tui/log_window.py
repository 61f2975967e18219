"""A window on a log of any size: it opens at the end, and grows upwards page by page as it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whet.engine.api import LogPage

PAGE = 1000
"""Lines read at once."""
TOP = 64 << 10
"""Bytes shown of the top at first; doubled each time they are read through."""
ALL = 1 << 30

Read = Callable[[int, int | None], "LogPage"]
"""Of :func:`whet.engine.api.log`: so many lines before a byte, by default before the end."""


def newest(read: Read) -> LogPage:
    """The last page."""
    return read(PAGE, None)


def oldest(read: Read, reach: int = TOP) -> tuple[LogPage, bool]:
    """The first ``reach`` bytes as whole lines, and whether that is all there is."""
    page = read(ALL, reach)
    if reach >= page.size:
        return page, True
    return page.model_copy(update={"lines": page.lines[:-1]}), False  # the last line is cut


def older_with(read: Read, before: int, text: str) -> list[LogPage]:
    """Pages above byte ``before``, top first, up to the nearest one that holds ``text`` in any case."""
    pages: list[LogPage] = []
    while before > 0:
        pages.insert(0, read(PAGE, before))
        before = pages[0].start
        if nearest(pages[0].lines, text, len(pages[0].lines), -1) is not None:
            break
    return pages


def nearest(lines: Sequence[str], text: str, place: int, direction: int) -> int | None:
    """The line nearest to ``place``, above it (-1) or below it (1), that holds ``text`` in any case."""
    wanted = text.lower()
    places = range(place + 1, len(lines)) if direction > 0 else range(min(place, len(lines)) - 1, -1, -1)
    return next((at for at in places if wanted in lines[at].lower()), None)


class LogWindow:
    """The lines that are loaded, all from one stretch of the log."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.start = 0
        """Byte at which the first line begins."""
        self.size = 0
        """Bytes of the whole log when it was read last."""
        self.at_end = True
        """Whether the last line is the log's; else there is more below."""
        self.reach = TOP

    @property
    def at_top(self) -> bool:
        return self.start == 0

    def show_newest(self, page: LogPage) -> bool:
        """Take the last page; whether it says anything new."""
        changed = not self.at_end or page.size != self.size or not self.lines
        if changed:
            self.lines, self.start, self.size, self.at_end = list(page.lines), page.start, page.size, True
        return changed

    def show_oldest(self, page: LogPage, whole: bool) -> None:
        """Take the log's beginning."""
        self.lines, self.start, self.size, self.at_end = list(page.lines), 0, page.size, whole

    def add_above(self, pages: Sequence[LogPage]) -> int:
        """Put pages on top; returns how many lines that are."""
        if not pages:
            return 0
        more = [line for page in pages for line in page.lines]
        self.lines[:0] = more
        self.start = pages[0].start
        return len(more)
