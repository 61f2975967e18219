"""A conversation as the tokens a model reads: what the chat screen shows on request."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from whet.engine import api

from ..render.text import printable


def prompt_of(model: Path, turns: list[dict[str, str]], system: str) -> api.TemplatePreview:
    """The turns through the same template, tokenizer and marks that training uses. Raises WhetError."""
    messages = [{"role": "system", "content": system}, *turns] if system else turns
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        file.flush()
        values = {"model": {"name": str(model)}, "data": {"train": file.name}}
        return api.template_view(values, rows=1).rows[0]


class PromptCard(ModalScreen[None]):
    """Tokens with special ones reversed and the assistant's own underlined; ids below."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,f4", "dismiss", "close", id="prompt.close")]

    def __init__(self, row: api.TemplatePreview) -> None:
        super().__init__()
        self.row = row

    def compose(self) -> ComposeResult:
        text = Text()
        for piece in self.row.tokens:
            style = "reverse" if piece.special else "underline" if piece.supervised else ""
            text.append(printable(piece.text), style)
        ids = " ".join(str(piece.id) for piece in self.row.tokens)
        with Vertical(classes="card"):
            yield Static(Text(f"The prompt: {len(self.row.tokens)} tokens", "bold"), classes="card-title")
            with VerticalScroll(classes="card-body"):
                yield Static(text)
                yield Static(Text(ids, "dim"))
            yield Static(
                Text("reversed: special tokens · underlined: what is trained on · esc closes", "dim")
            )
