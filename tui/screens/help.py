"""The guide to read: pages on the left, the page on the right, the finding or setting a question led to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Markdown, OptionList
from textual.widgets.option_list import Option

from ..actions import Action
from ..assistant.passages import Passage, topics
from ..widgets.assistant_bar import Advice
from .base import WhetScreen


class HelpScreen(WhetScreen):
    """Opened with a topic's name, or a passage."""

    heading = "whet · help"
    topic = "keys"
    AUTO_FOCUS = "#page-scroll"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "page(1)", "next page", id="help.next"),
        Binding("k", "page(-1)", "previous page", id="help.previous"),
    ]

    def __init__(self, place: str | Passage = "first-steps") -> None:
        super().__init__()
        self.pages = {
            name: (text.splitlines()[0].removeprefix("# "), text) for name, text in topics().items()
        }
        self.first = place if isinstance(place, str) else place.target
        if self.first not in self.pages and isinstance(place, Passage):
            self.pages = {place.target: (place.target, markdown(place)), **self.pages}

    def body(self) -> ComposeResult:
        with Horizontal(id="help"):
            yield OptionList(*(Option(title, name) for name, (title, _) in self.pages.items()), id="pages")
            with VerticalScroll(id="page-scroll", can_focus=True):
                yield Markdown("", id="page", open_links=False)

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("#pages", OptionList).highlighted = list(self.pages).index(self.first)

    @on(OptionList.OptionHighlighted, "#pages")
    def _page_chosen(self, event: OptionList.OptionHighlighted) -> None:
        self.query_one("#page", Markdown).update(self.pages[str(event.option_id)][1])
        self.query_one("#page-scroll").scroll_home(animate=False)

    def action_page(self, by: int) -> None:
        """Turn the page."""
        pages = self.query_one("#pages", OptionList)
        pages.highlighted = max(0, min(len(self.pages) - 1, (pages.highlighted or 0) + by))

    def advice(self) -> Sequence[Advice]:
        return (
            Advice("Ask in your own words; errors and settings are answered too.", "/"),
            Advice("Back to where you were.", "esc"),
        )

    def actions(self) -> Sequence[Action]:
        return (Action("explain a finding", cli="whet explain D01"),)


def markdown(passage: Passage) -> str:
    """A finding or a setting as a page."""
    if passage.kind == "setting":
        return f"# {passage.title}\n\n{passage.text}\n\nOn the command line: `{passage.target}=…`"
    from whet.engine import api

    entry = api.explain(passage.target)
    return (
        f"# {entry.id}: {entry.title}\n\n{entry.symptom}\n\n**How it is seen.** {entry.seen}\n\n"
        f"**Why.** {entry.why}\n\n**What helps.** {entry.fix}\n"
    )
