"""Step 1: choose data, its rows in view; then its health: what was found, the rows meant, the fixes."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import ContentSwitcher, OptionList, Static
from textual.widgets.option_list import Option

from whet.engine import api

from ...render.data import data_summary, use_words
from ...render.text import plain, printable
from ...widgets.choice_card import ChoiceCard, LineCard
from ...widgets.file_browser import Entry, FileBrowser
from ...widgets.finding_card import StepList, finding_line, hanging, worst_first
from .advice import UNKNOWN_LAYOUT
from .messages import ColumnsChosen, DataChosen, EditWanted, FixWanted, MethodChosen, Next, Situation

DEMO = Entry("data", "demo", "demo", "467 questions and answers about fine-tuning, shipped with whet")
PREVIEWED = 4
PREVIEW_SECONDS = 0.1
LOOKED_AT = 20
"""Rows whose columns are offered."""
NO_ANSWER = "(none)"
AROUND = 2
"""Lines before and after a row that are shown with it."""
LONGEST_LINE = 1200
HAS_LINES = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".md")

PROBLEMS = {
    "answerless": "no answer to learn",
    "truncated_lost_all": "cut before its answer",
    "empty_replies": "an empty reply",
    "odd_roles": "roles out of order",
    "duplicates": "repeats an earlier row",
    "answer_in_prompt": "the answer stands in the prompt",
    "marked_rows": "template markers in its text",
}
"""Counts of the report whose rows are listed, in words about one row."""


class DataStep(Vertical):
    """Browser and preview, or the report with findings and rows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "type", "type", id="data.type"),
        Binding("c", "choose", "other data", show=False, id="data.choose"),
    ]

    def __init__(self, folder: Path, known: list[str], id: str) -> None:
        super().__init__(id=id)
        self.folder, self.known = folder, known
        self.findings: list[api.Finding] = []
        self.rows: list[tuple[str, int, str]] = []
        self.seen: object = None
        self.looked_at: str | None = None
        self.source = ""
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        first = [DEMO, *(Entry("data", Path(one).name, one, one) for one in self.known if one != "demo")]
        with ContentSwitcher(initial="data-choose"):
            with Horizontal(id="data-choose", classes="two"):
                yield FileBrowser(self.folder, api.data_suffixes(), first, id="files")
                with VerticalScroll(id="preview-box", can_focus=False):
                    yield Static(id="preview", markup=False)
            with Vertical(id="data-health"):
                with VerticalScroll(id="report-box", can_focus=False):
                    yield Static(id="report", markup=False)
                yield StepList(id="data-list")

    def on_mount(self) -> None:
        self.query_one("#preview-box").border_title = "preview"
        self.query_one("#report-box").border_title = "data"
        self.query_one("#data-list").border_title = "what was found · enter looks closer"

    @property
    def choosing(self) -> bool:
        return self.query_one(ContentSwitcher).current == "data-choose"

    def enter(self, situation: Situation) -> None:
        """Focus what is asked about."""
        switcher = self.query_one(ContentSwitcher)
        if situation.draft.data is None:
            switcher.current = "data-choose"
        self.query_one("#files" if self.choosing else "#data-list").focus()

    def show(self, situation: Situation) -> None:
        """The report of the plan; what is being read, before there is one."""
        if situation.draft.data is None:
            return
        plan = situation.plan
        if plan is None:
            words = f"reading {situation.draft.data} … {situation.rows_read:,} rows"
            if situation.problem is not None:
                words = f"{situation.problem.message}\n{situation.problem.hint}"
            self.query_one("#report", Static).update(Text(printable(words)))
            self._list(situation, [], [])
        elif self.seen != (id(plan), len(situation.uses)):
            self.query_one("#report", Static).update(data_summary(plan.data.report))
            findings = [one for one in worst_first(plan.findings) if one.id.startswith("D")]
            self._list(situation, findings, problem_rows(plan.data.report))
        self.seen = None if plan is None else (id(plan), len(situation.uses))

    def show_health(self, *, focus: bool = True) -> None:
        """Turn from choosing to what was chosen."""
        self.query_one(ContentSwitcher).current = "data-health"
        if focus:
            self.query_one("#data-list").focus()

    def _list(
        self, situation: Situation, findings: list[api.Finding], rows: list[tuple[str, int, str]]
    ) -> None:
        listed = self.query_one("#data-list", StepList)
        at = listed.highlighted or 0
        self.findings, self.rows = findings, rows
        listed.clear_options()
        unread = situation.problem is not None and situation.problem.code == UNKNOWN_LAYOUT
        if unread and situation.draft.data is not None:
            self.source = situation.draft.data
            listed.add_option(Option(Text("▸ say which columns hold question and answer", "bold"), "columns"))
        else:
            listed.add_option(Option(Text("▸ go on to the model", "bold"), "go"))
        listed.add_option(Option(Text("  choose other data (c)", "dim"), "other"))
        listed.add_options(method_options(situation))
        listed.add_options(
            [Option(finding_line(one), f"finding-{number}") for number, one in enumerate(findings)]
        )
        for number, (file, line, why) in enumerate(rows):
            where = f"{plain(Path(file).name, 40)}:{line}  "
            place = hanging(Text("  row", "dim"), Text.assemble(where, (plain(why), "dim")))
            listed.add_option(Option(place, f"row-{number}"))
        listed.highlighted = min(at, listed.option_count - 1)

    @property
    def finding(self) -> api.Finding | None:
        """The finding under the cursor."""
        listed = self.query_one("#data-list", StepList)
        if self.choosing or listed.highlighted is None:
            return None
        kind, _, number = str(listed.get_option_at_index(listed.highlighted).id).partition("-")
        return self.findings[int(number)] if kind == "finding" else None

    # --- choosing

    def on_file_browser_looked(self, event: FileBrowser.Looked) -> None:
        event.stop()
        if self._timer is not None:
            self._timer.stop()
        self.looked_at = event.value
        self._timer = self.set_timer(PREVIEW_SECONDS, lambda: self._look(event.value))

    def _look(self, source: str | None) -> None:
        if source is None:
            self._show_preview(
                Text("Enter opens a folder, and chooses a file. i: type a path or a hub id.", "dim")
            )
            return

        def read() -> None:
            made = preview_of(source)
            if self.is_attached and self.looked_at == source:
                self.app.call_from_thread(self._show_preview, made)

        self.run_worker(read, thread=True, group="preview", exit_on_error=False)

    def _show_preview(self, made: RenderableType) -> None:
        self.query_one("#preview", Static).update(made)

    def on_file_browser_chosen(self, event: FileBrowser.Chosen) -> None:
        event.stop()
        self.post_message(DataChosen(event.value))

    def action_type(self) -> None:
        """Name data by hand."""
        help = "A file, a folder, or a hub id such as user/name; demo is the shipped set."
        self.app.push_screen(LineCard("Train on", help), self._typed)

    def _typed(self, words: str | None) -> None:
        if words and words.strip():
            self.post_message(DataChosen(words.strip()))

    def action_choose(self) -> None:
        """Back to the browser."""
        self.query_one(ContentSwitcher).current = "data-choose"
        self.query_one("#files").focus()

    # --- health

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        kind, _, number = str(event.option_id).partition("-")
        if kind == "go":
            self.post_message(Next())
        elif kind == "other":
            self.action_choose()
        elif kind == "columns":
            self._ask_question()
        elif kind == "method":
            self.post_message(MethodChosen(str(number)))
        elif kind == "finding":
            self.post_message(FixWanted(self.findings[int(number)]))
        else:
            self.app.push_screen(RowCard(*self.rows[int(number)]), self._edit)

    def _ask_question(self) -> None:
        columns = [(name, example) for name, example in columns_of(self.source).items()]
        help = "What a person asks, or the whole text where there are no answers."
        card = ChoiceCard("Which column holds the question?", help, columns, "")
        self.app.push_screen(card, lambda name: self._ask_answer(name, columns) if name else None)

    def _ask_answer(self, question: str, columns: list[tuple[str, str]]) -> None:
        others = [(name, example) for name, example in columns if name != question]
        choices = [*others, (NO_ANSWER, f"learn {question} as plain text")]
        card = ChoiceCard("Which column holds the answer?", "What the model learns to write.", choices, "")

        def chosen(name: str | None) -> None:
            if name is not None:
                self.post_message(ColumnsChosen(question, None if name == NO_ANSWER else name))

        self.app.push_screen(card, chosen)

    def _edit(self, place: tuple[str, int] | None) -> None:
        if place is not None:
            self.post_message(EditWanted(*place))


class RowCard(ModalScreen[tuple[str, int] | None]):
    """A row among its neighbours; gives its place where the editor is wanted."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "close", id="row.close"),
        Binding("e", "edit", "open in $EDITOR", id="row.edit"),
    ]

    def __init__(self, file: str, line: int, why: str) -> None:
        super().__init__()
        self.file, self.line, self.why = file, line, why

    def compose(self) -> ComposeResult:
        with Vertical(classes="card"):
            yield Static(Text(f"{plain(self.file)}:{self.line}", "bold"), classes="card-title")
            yield Static(Text(plain(self.why), "red"), classes="card-title")
            with VerticalScroll(classes="card-body"):
                yield Static(lines_around(Path(self.file), self.line), markup=False)
            yield Static(Text("e opens the file there in $EDITOR · esc closes", "dim"))

    def action_edit(self) -> None:
        """Close with the place."""
        self.dismiss((self.file, self.line))


def method_options(situation: Situation) -> list[Option]:
    """What the rows can be trained for, where there is a choice; ● is what they are."""
    recipe, uses = situation.draft.recipe, situation.uses
    offered = api.proposable(uses)
    if recipe is None or len(uses) < 2:
        return []
    options = [Option(Text("  they can be trained for:", "dim"), disabled=True)]
    for use in uses:
        chosen, can = use.method == recipe.method.kind, use.method in offered
        text = Text.assemble(
            ("● " if chosen else "  ", "green"), (f"{use.method:<21}", "bold" if can else "dim")
        )
        words = use_words(use) if can else f"{use_words(use)} · by a recipe of its own: whet recipes"
        text.append(words, "dim")
        options.append(Option(text, f"method-{use.method}", disabled=not can))
    return options


def problem_rows(report: api.DataReport) -> list[tuple[str, int, str]]:
    """File, line and what is wrong: unreadable rows first, then the first ones of each other problem."""
    rows = [(one.file, one.line, one.reason) for one in report.bad]
    for name, words in PROBLEMS.items():
        rows += [(one.file, one.line, words) for one in report.train.examples.get(name, [])]
    return rows


def lines_around(path: Path, line: int) -> Text:
    """The line and its neighbours, numbered; why there are none for a file without lines."""
    if path.suffix.lower() not in HAS_LINES:
        return Text(f"row {line} of a {path.suffix or 'hub'} data set: it has no lines to show", "dim")
    first = max(1, line - AROUND)
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = [one[:LONGEST_LINE] for one in islice(file, first - 1, line + AROUND)]
    except OSError as error:
        return Text(f"{path}: {error.strerror}", "red")
    text = Text()
    for number, words in enumerate(lines, first):
        here = number == line
        text.append(f"{'▸' if here else ' '}{number:>7}  ", "bold red" if here else "dim")
        text.append(f"{plain(words)}\n", "" if here else "dim")
    return text


def columns_of(source: str) -> dict[str, str]:
    """Names of a source's columns, each with the beginning of its value in the first row that reads."""
    wanted = api.Recipe.model_validate({"model": {"name": "demo"}, "data": {"train": source}})
    rows = (row for row in api.first_rows(wanted, LOOKED_AT) if not row.problem)
    return {name: plain(str(value), 60) for row in rows for name, value in json.loads(row.text).items()}


def preview_of(source: str) -> RenderableType:
    """The first rows of a source, or why they cannot be read."""
    wanted = api.Recipe.model_validate({"model": {"name": "demo"}, "data": {"train": source}})
    try:
        rows = api.first_rows(wanted, PREVIEWED)
    except api.WhetError as error:
        return Text(printable(f"{error.message}\n{error.hint}"), "yellow")
    if not rows:
        return Text("no rows", "yellow")
    return Group(*(_row(row) for row in rows))


def _row(row: api.RowText) -> Text:
    text = Text(f"row {row.line}\n", "dim")
    if row.problem:
        text.append(f"{plain(row.problem)}\n", "red")
        text.append(f"{plain(row.text, 300)}\n")
        return text
    for name, value in json.loads(row.text).items():
        turns = value if isinstance(value, list) and all(isinstance(one, dict) for one in value) else None
        if turns:
            for turn in turns:
                _pair(
                    text, str(turn.get("role", turn.get("from", "?"))), turn.get("content", turn.get("value"))
                )
        else:
            _pair(text, name, value)
    return text


def _pair(text: Text, name: str, value: Any) -> None:
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text.append(f"  {plain(name, 20)}  ", "cyan")
    text.append(f"{plain(words, 240)}\n", "")
