"""Step 4: what matters most, within which limits, what is trained; and other ways with what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from whet.engine import api

from ...render.text import plain
from ...widgets.choice_card import LineCard
from ...widgets.finding_card import StepList
from .draft import Draft
from .messages import GoalChosen, Next, Patched, Situation

PRIORITIES = {
    "quality": "the largest model that fits, with room to learn",
    "speed": "a small model and a short training",
    "memory": "the least memory: base weights in 4 bits, activations computed again",
}
OF_ROWS = {
    "quality": "room to learn: the larger of the two usual ranks",
    "speed": "fewer numbers to train, a short training",
    "memory": "the least memory: base weights in 4 bits where there is a GPU",
}
"""The same of methods whose model is not chosen by size."""
KINDS = {
    "lora": "a small adapter beside the weights: the usual way",
    "rslora": "LoRA with another scale, for ranks above 64",
    "dora": "LoRA with a magnitude of its own: a little better, a good deal slower",
    "none": "all weights: the most memory, for much data",
}
LIMITS = {
    "max_minutes": ("time limit", "Minutes of training, export left out; empty for none."),
    "max_memory_gib": ("memory limit", "GiB of GPU memory (RAM without a GPU); empty for all there is."),
}


@dataclass(frozen=True)
class Line:
    """One line of the list and what Enter on it does."""

    id: str
    text: Text
    words: str = ""


class GoalStep(Vertical):
    """The list, and what whet gave up or could not meet."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.situation: Situation | None = None
        self.lines: list[Line] = []
        self.said = Text()

    def compose(self) -> ComposeResult:
        yield StepList(id="goal-list")
        with VerticalScroll(id="goal-said-box", can_focus=False):
            yield Static(id="goal-said", markup=False)

    def enter(self, situation: Situation) -> None:
        """Focus the list, on the goal in force."""
        self.show(situation)
        listed = self.query_one("#goal-list", StepList)
        listed.focus()
        listed.highlighted = listed.get_option_index(f"priority-{situation.draft.priority}")

    def show(self, situation: Situation) -> None:
        """List again where something changed."""
        self.situation = situation
        lines = lines_of(situation.draft, situation.proposal)
        self._say()
        if lines == self.lines:
            return
        listed = self.query_one("#goal-list", StepList)
        at = listed.highlighted
        self.lines = lines
        listed.clear_options()
        listed.add_options([Option(one.text, one.id, disabled=one.id.startswith("head-")) for one in lines])
        listed.highlighted = at if at is not None and at < len(lines) else 1

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        self._say()

    def _say(self) -> None:
        """The line under the cursor in full, and what the proposal says."""
        listed = self.query_one("#goal-list", StepList)
        at = listed.highlighted
        words = self.lines[at].words if at is not None and at < len(self.lines) else ""
        proposal = self.situation.proposal if self.situation is not None else None
        text = Text(f"{words}\n").append_text(said(proposal))
        if text != self.said:
            self.said = text
            self.query_one("#goal-said", Static).update(text)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        assert self.situation is not None
        draft = self.situation.draft
        kind, _, name = str(event.option_id).partition("-")
        if kind == "priority":
            fresh = name != draft.priority or draft.own_text
            self.post_message(GoalChosen(priority=name) if fresh else Next())
        elif kind == "kind":
            self.post_message(Patched({"adapter.kind": name}, "set by you"))
        elif kind == "limit":
            now = getattr(draft, name)
            title, help = LIMITS[name]
            card = LineCard(title.capitalize(), help, "" if now is None else f"{now:g}")
            self.app.push_screen(card, lambda words: self._limited(name, words))
        elif kind == "option" and self.situation.proposal is not None:
            option = self.situation.proposal.alternatives[int(name)]
            self.post_message(Patched(option.patch, option.why))

    def _limited(self, name: str, words: str | None) -> None:
        if words is None:
            return
        value = limit_of(words)
        if value is False:
            self.app.notify(f"{words!r} is no number above 0.", severity="warning", timeout=4)
            return
        self.post_message(GoalChosen(**{name: value}))


def limit_of(words: str) -> float | bool | None:
    """A number above 0, None for none; False for nonsense."""
    if not words.strip():
        return None
    try:
        value = float(words)
    except ValueError:
        return False
    return value if 0 < value < float("inf") else False


def lines_of(draft: Draft, proposal: Any) -> list[Line]:
    """Goals, limits, what is trained, other ways."""
    lines = [Line("head-goal", Text("what matters most", "dim"))]
    lines += [
        _choice(f"priority-{name}", name, words, draft.priority == name and not draft.own_text)
        for name, words in (PRIORITIES if _by_size(draft) else OF_ROWS).items()
    ]
    lines.append(Line("head-limit", Text("limits", "dim")))
    for name, (title, _) in LIMITS.items():
        value = getattr(draft, name)
        lines.append(_choice(f"limit-{name}", title, "none" if value is None else f"{value:g}", False))
    recipe = draft.recipe
    if recipe is not None:
        lines.append(Line("head-kind", Text("what is trained", "dim")))
        names = {"none": "all weights"}
        lines += [
            _choice(f"kind-{kind}", names.get(kind, kind), words, recipe.adapter.kind == kind)
            for kind, words in KINDS.items()
        ]
    options: Sequence[api.Option] = proposal.alternatives if proposal is not None else ()
    if options:
        lines.append(Line("head-option", Text("other ways", "dim")))
    for number, option in enumerate(options):
        minutes = "" if option.minutes is None else f", {option.minutes:.0f} min"
        words = f"{option.text} · {option.memory_gib:.1f} GiB{minutes} · {option.why}"
        lines.append(_choice(f"option-{number}", option.kind, words, False))
    return lines


def _by_size(draft: Draft) -> bool:
    """Whether a goal decides how large the model is."""
    recipe = draft.recipe
    return recipe is None or recipe.method.kind in api.LANGUAGE_MODELS


def _choice(id: str, name: str, words: str, chosen: bool) -> Line:
    mark = ("● ", "green") if chosen else ("  ", "")
    text = Text.assemble(mark, (f"{plain(name):<13}", "bold"), plain(words))
    return Line(id, text, plain(words))


def said(proposal: Any) -> Text:
    """What could not be met, what was mended or given up."""
    text = Text()
    if proposal is None:
        return Text(
            "A goal replaces the settings by whet's own choice for this data; u takes it back.", "dim"
        )
    for line in proposal.unmet:
        text.append("! ", "bold yellow")
        text.append(f"{plain(line)}\n")
    for line in proposal.changed:
        text.append(f"› {plain(line)}\n")
    if not text:
        text.append("Every wish is met.", "green")
    text.rstrip()
    return text
