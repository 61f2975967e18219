"""Step 3: the template X-ray: real rows as tokens, what is learnt of them, which template it is."""

from __future__ import annotations

from typing import ClassVar

from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from whet.engine import api

from ...render.findings import finding_text
from ...render.template import template_origin
from ...widgets.choice_card import ChoiceCard
from ...widgets.token_view import TokenView
from .messages import Patched, Situation

OWN = "the model's own"
NO_TEXT = "These rows are not text alone; what the model gets of them is made in training."


class TemplateStep(Vertical):
    """Tokens above, whose template it is below."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("t", "template", "template", id="template.choose")]

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.now: str | None = None
        self.view: api.TemplateView | None = None

    def compose(self) -> ComposeResult:
        yield TokenView(id="token-view")
        with VerticalScroll(id="origin-box", can_focus=False):
            yield Static(id="origin", markup=False)

    def on_mount(self) -> None:
        self.query_one("#token-view").border_title = "rows as the model sees them"
        self.query_one("#origin-box").border_title = "template"

    def enter(self, situation: Situation) -> None:
        """Focus the tokens, which scroll; Enter goes on from there."""
        self.show(situation)
        self.query_one(TokenView).focus()

    def show(self, situation: Situation) -> None:
        """Another view only where it changed."""
        view = situation.template
        recipe = situation.draft.recipe
        self.now = recipe.data.template if recipe is not None else None
        tokens = self.query_one(TokenView)
        self.query_one("#origin-box").display = view is not None
        if view is None:
            problem = situation.problem
            empty = "choose data first (1)" if situation.draft.data is None else "rendering rows …"
            tokens.show((), problem.message if problem is not None else empty)
            self.query_one("#origin", Static).update("")
        elif view is not self.view:
            tokens.show(view.rows, NO_TEXT)
            self.query_one("#origin", Static).update(origin(view))
        self.view = view

    def action_template(self) -> None:
        """Choose among the known templates."""
        if self.view is not None and self.view.template is None and self.view.note:
            self.app.notify("No template writes these rows: there is none to choose.", timeout=4)
            return
        choices = [(OWN, "from the model's files")]
        choices += [(name, f"of {family}") for name, family in api.chat_templates().items()]
        help = "The format that conversations are written in before the model sees them."
        self.app.push_screen(ChoiceCard("Chat template", help, choices, self.now or OWN), self._chosen)

    def _chosen(self, name: str | None) -> None:
        if name is not None:
            self.post_message(Patched({"data.template": None if name == OWN else name}, "set by you"))


def origin(view: api.TemplateView) -> RenderableType:
    """Whose template, how it is alike, and what the checks say of rows and template."""
    parts: list[RenderableType] = [template_origin(view)]
    parts += [finding_text(finding) for finding in view.findings if finding.severity != "note"]
    if len(parts) == 1:
        parts.append(Text("nothing wrong was found with rows and template", "green"))
    return Group(*parts)
