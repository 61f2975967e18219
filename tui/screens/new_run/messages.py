"""What the steps tell the screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textual.message import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from whet.engine.api import Finding, ModelEntry, Plan, Proposal, TemplateView, Use, WhetError

    from .draft import Draft
    from .fields import Field


@dataclass
class Situation:
    """All that the steps show: the draft, and what the engine said of it last."""

    draft: Draft
    plan: Plan | None = None
    """Of an earlier text while a new one is being made."""
    proposal: Proposal | None = None
    """None for a recipe that came from a file."""
    models: list[ModelEntry] | None = None
    """None while they are being looked for."""
    template: TemplateView | None = None
    """Of the plan's data."""
    uses: Sequence[Use] = ()
    """Methods that read the rows, the likeliest first."""
    encoders: Sequence[str] = ()
    """Models for a method whose models are no chat models."""
    problem: WhetError | None = None
    """Of the last planning."""
    planned: str = ""
    """The text that ``plan`` and ``problem`` speak of."""
    busy: bool = False
    rows_read: int = 0


class Next(Message):
    """Go on to the next step."""


class DataChosen(Message):
    """Train on this: ``demo``, a path or a hub id."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source


class ColumnsChosen(Message):
    """Read rows of no known layout like this."""

    def __init__(self, question: str, answer: str | None) -> None:
        super().__init__()
        self.patch: dict[str, Any] = {
            "data.format": "text" if answer is None else "alpaca",
            "data.columns": {"text": question}
            if answer is None
            else {"instruction": question, "output": answer},
        }


class MethodChosen(Message):
    """Train the rows for this."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind


class ModelChosen(Message):
    """Train this model; None lets whet choose."""

    def __init__(self, name: str | None) -> None:
        super().__init__()
        self.name = name


class GoalChosen(Message):
    """Propose again with other wishes; what is not named stays."""

    def __init__(self, **wishes: Any) -> None:
        super().__init__()
        self.wishes = wishes


class Typed(Message):
    """A field's new words."""

    def __init__(self, field: Field, words: str) -> None:
        super().__init__()
        self.field, self.words = field, words


class Patched(Message):
    """Settings to change at once."""

    def __init__(self, patch: dict[str, Any], reason: str) -> None:
        super().__init__()
        self.patch, self.reason = patch, reason


class FixWanted(Message):
    """Show a finding's card, from where its fix can be applied."""

    def __init__(self, finding: Finding) -> None:
        super().__init__()
        self.finding = finding


class StartWanted(Message):
    """Start the run."""


class EditWanted(Message):
    """Open a file in the editor, at a line."""

    def __init__(self, path: str, line: int) -> None:
        super().__init__()
        self.path, self.line = path, line
