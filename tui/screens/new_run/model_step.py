"""Step 2: choose a model among those here and those the hub has, by what each needs on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from whet.engine import api

from ...render.text import plain
from ...render.units import amount
from ...widgets.choice_card import LineCard
from ...widgets.finding_card import StepList
from .messages import ModelChosen, Next, Situation

NAME = 36
"""Columns of a name in the list."""


class ModelStep(Vertical):
    """The list, and what is known of the model under the cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "type", "search", id="model.type"),
        Binding("x", "auto", "auto", id="model.auto"),
    ]

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.query_text = ""
        self.found: list[api.HubModel] = []
        self.said = ""
        """Why the hub was not searched, or that it is being searched."""
        self.entries: list[api.ModelEntry] = []
        self.chosen: str | None = None
        self.encoders: list[str] = []
        """For methods whose models are no chat models: offered before those that are."""
        self.situation: Situation | None = None

    def compose(self) -> ComposeResult:
        yield Static(_line(None), id="model-head", markup=False)
        yield StepList(id="model-list")
        with VerticalScroll(id="model-about-box", can_focus=False):
            yield Static(id="model-about", markup=False)

    def enter(self, situation: Situation) -> None:
        """Focus the list, on the model that is chosen."""
        self.show(situation)
        self.query_one("#model-list").focus()

    def show(self, situation: Situation) -> None:
        """List the models; the chosen one is marked."""
        recipe = situation.draft.recipe
        chosen = recipe.model.name if recipe is not None else situation.draft.model
        same = self.situation is not None and situation.models is not None and bool(self.entries)
        same = same and list(situation.encoders) == self.encoders
        self.situation, self.encoders = situation, list(situation.encoders)
        if same and chosen == self.chosen:
            return
        self.chosen = chosen
        self._list()

    def _list(self) -> None:
        listed = self.query_one("#model-list", StepList)
        listed.clear_options()
        models = self.situation.models if self.situation is not None else None
        if models is None:
            listed.add_option(Option(Text("looking for models …", "dim"), disabled=True))
            return
        names = [one.name for one in models]
        self.entries = matching(models, self.query_text)
        if "/" in self.query_text and self.query_text not in names:
            words = Text.assemble(
                "  take ", (plain(self.query_text), "bold"), " from the hub, or that folder"
            )
            listed.add_option(Option(words, f"typed {self.query_text}"))
        if self.chosen is not None and self.chosen not in names:
            mark = Text.assemble(("● ", "green"), plain(self.chosen))
            listed.add_option(Option(mark, f"model {self.chosen}"))
        for name in self.encoders:
            if name not in names and name != self.chosen and self.query_text.lower() in name.lower():
                listed.add_option(Option(_encoder_line(name), f"model {name}"))
        for entry in self.entries:
            listed.add_option(Option(_line(entry, entry.name == self.chosen), f"model {entry.name}"))
        for found in self.found:
            if found.name not in names and found.name != self.chosen:
                listed.add_option(Option(_hub_line(found), f"model {found.name}"))
        if self.said:
            listed.add_option(Option(Text(f"  {plain(self.said, 200)}", "dim"), disabled=True))
        if not listed.option_count:
            listed.add_option(
                Option(Text(f"no model has {self.query_text!r}: i searches again"), disabled=True)
            )
        ids = [str(one.id) for one in listed.options]
        wanted = f"model {self.chosen}"
        listed.highlighted = ids.index(wanted) if wanted in ids and not self.query_text else 0

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        name = str(event.option_id).partition(" ")[2]
        entry = next((one for one in self.entries if one.name == name), None)
        reason = ""
        if self.situation is not None and name == self.chosen:
            reason = self.situation.draft.reasons.get("model.name", "")
        passed = self.situation.proposal.passed_over if self.situation and self.situation.proposal else []
        on_hub = next((one for one in self.found if one.name == name), None)
        told = hub_words(on_hub) if on_hub is not None else about(entry, name, reason, passed)
        self.query_one("#model-about", Static).update(told)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        name = str(event.option_id).partition(" ")[2]
        self.query_text, self.found, self.said = "", [], ""
        fine = self.situation is not None and self.situation.problem is None
        self.post_message(Next() if fine and name == self.chosen else ModelChosen(name))

    def action_auto(self) -> None:
        """Take the choice back."""
        self.post_message(ModelChosen(None))

    def action_type(self) -> None:
        """Search the list, or name what is not in it."""
        help = "Part of a name, family or licence; or a whole hub id such as org/model; or a folder."
        self.app.push_screen(LineCard("Which model?", help, self.query_text), self._typed)

    def _typed(self, words: str | None) -> None:
        if words is not None:
            self.query_text, self.found, self.said = words.strip(), [], ""
            if self.query_text:
                self._search(self.query_text)
            self._list()
            self.query_one("#model-list").focus()

    def _search(self, words: str) -> None:
        """Look on the hub, too; a later search replaces this one."""
        self.said = "searching the hub …"

        def search() -> None:
            found, said = search_hub(words)
            if self.is_attached:
                self.app.call_from_thread(self._found, words, found, said)

        self.run_worker(search, thread=True, group="hub", exit_on_error=False)

    def _found(self, words: str, found: list[api.HubModel], said: str) -> None:
        if words == self.query_text:
            self.found, self.said = found, said
            self._list()


def matching(models: Sequence[api.ModelEntry], query: str) -> list[api.ModelEntry]:
    """Those that have every word of the query in name, family or licence."""
    words = query.lower().split()
    return [
        one
        for one in models
        if all(word in f"{one.name} {one.family} {one.licence}".lower() for word in words)
    ]


def search_hub(words: str) -> tuple[list[api.HubModel], str]:
    """What the hub has under these words, and what there is to say of the search."""
    try:
        found = api.search_models(words)
    except api.WhetError as error:
        return [], error.message
    return found, "" if found else "the hub has no text model of that name"


def _encoder_line(name: str) -> Text:
    """As :func:`_line`, of a model that is usual for this method."""
    text = Text(f"  {plain(name, NAME):<{NAME}}", "bold", no_wrap=True, overflow="ellipsis")
    text.append(f"{'':>6}{'':>7}      usual", "not bold dim")
    return text


def _hub_line(found: api.HubModel) -> Text:
    """As :func:`_line`, of a model that is only known by name."""
    text = Text(f"  {plain(found.name, NAME):<{NAME}}", no_wrap=True, overflow="ellipsis")
    text.append(f"{amount(found.parameters) if found.parameters else '?':>6}")
    text.append(f"{'':>7}      hub", "dim")
    text.append(" gated" if found.gated else "", "yellow")
    text.append(f" {plain(found.licence or '')}", "dim")
    return text


def hub_words(found: api.HubModel) -> Text:
    """What the hub tells of it."""
    text = Text(plain(found.name), "bold")
    text.append(f"\non the hub, licence {plain(found.licence or 'unknown')}, ", "")
    text.append(f"{amount(found.downloads)} downloads in the last month")
    text.append("\nits small files are read when it is taken, its weights when training starts", "dim")
    if found.gated:
        text.append("\ngated: log in and accept the licence on its page first", "yellow")
    return text


def _line(entry: api.ModelEntry | None, chosen: bool = False) -> Text:
    """Columns: mark, name, size, least memory, where it is; of no entry their names."""
    text = Text(no_wrap=True, overflow="ellipsis")
    if entry is None:
        text.append(f"  {'model':<{NAME}}{'size':>6}{'needs':>7} GiB  where", "dim")
        return text
    needs = min(entry.needs_gib.values(), default=0.0)
    fits = any(entry.fits.values())
    where = "here" if entry.here else "hub" if entry.reachable else "offline"
    text.append("● " if chosen else "  ", "green")
    text.append(f"{plain(entry.name, NAME):<{NAME}}", "bold" if entry.here else "")
    text.append(f"{amount(entry.parameters):>6}")
    text.append(f"{needs:>7.1f}   {'✓' if fits else '✗'}", "green" if fits else "red")
    text.append(f"  {where}", "" if entry.here else "dim")
    if entry.gated:
        text.append(" gated", "yellow")
    if not entry.chat:
        text.append(" base", "dim")
    return text


def about(entry: api.ModelEntry | None, name: str, reason: str, passed: Sequence[str]) -> Text:
    """What there is to know before taking it."""
    text = Text(plain(name), "bold")
    if reason:
        text.append(f"  chosen: {plain(reason)}", "green")
    if entry is None:
        text.append("\nnot in the list: its small files are read when it is taken", "dim")
        return text
    needs = " · ".join(
        f"{held} {size:.1f} GiB {'✓' if entry.fits.get(held) else '✗ too much'}"
        for held, size in entry.needs_gib.items()
    )
    context = f", context {entry.context:,}" if entry.context else ""
    text.append(f"\n{entry.family}, {'chat' if entry.chat else 'base'} model{context}", "")
    text.append(f", licence {plain(entry.licence)}" if entry.licence else "")
    text.append(f"\nLoRA on rows of 2,048 tokens: {needs}")
    text.append(f"\n{plain(entry.note)}" if entry.note else "")
    if entry.gguf:
        text.append(f"\nno GGUF: {plain(entry.gguf)}", "yellow")
    for line in passed:
        if line.startswith(f"{entry.name}:"):
            text.append(f"\nnot chosen by whet: {plain(line.partition(': ')[2])}", "yellow")
    return text
