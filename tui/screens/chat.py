"""Base beside tuned beside GGUF: the same question, three answers as they come, and the prompt as tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.css.query import NoMatches
from textual.widgets import Input, Static

from whet.engine import api

from ..actions import Action, chat_action
from ..chat_log import Conversation, Sampling, order, pieces
from ..render.text import plain, printable
from ..widgets.assistant_bar import Advice
from .base import WhetScreen

NAMES = {"base": "base", "tuned": "tuned", "gguf": "GGUF"}
DRAWN_EVERY = 0.2
"""Seconds between two redraws of an answer that streams in."""


class ChatScreen(WhetScreen):
    """Talks to a run, a model folder or a GGUF file; the models live in a process of their own."""

    heading = "whet · chat"
    topic = "chat"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "app.guide", "help", id="chat.help"),
        Binding("f2", "ask_guide", "ask", show=False, id="chat.ask"),
        Binding("f3", "copy_forms", "copy", id="chat.copy"),
        Binding("f5", "again", "ask anew", id="chat.again"),
        Binding("f6", "longer(0.5)", "shorter", show=False, id="chat.shorter"),
        Binding("f7", "longer(2)", "longer", id="chat.longer"),
        Binding("f8", "warmer(-0.1)", "cooler", show=False, id="chat.cooler"),
        Binding("f9", "warmer(0.1)", "warmer", id="chat.warmer"),
        Binding("f4", "prompt", "prompt", id="chat.prompt"),
        Binding("f10", "forget", "new chat", show=False, id="chat.forget"),
    ]

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target
        self.sampling = Sampling()
        self.session: api.ChatSession | None = None
        self.chats: dict[str, Conversation] = {}
        self.answering: str | None = None
        self.last = ""

    def body(self) -> ComposeResult:
        yield Horizontal(id="voices")
        yield Static("", id="sampling", markup=False)
        yield Input(placeholder="Loading the models …", disabled=True, id="say", compact=True)

    def on_mount(self) -> None:
        super().on_mount()
        self.set_heading(f"whet · chat · {plain(self.target, 60)}")
        self._show_sampling()
        self.in_background(self._load, self._loaded, group="chat")

    def on_unmount(self) -> None:
        if self.session is not None:
            self.session.close()

    def _load(self) -> api.ChatSession:
        target = api.chat_target(self.target)
        if target.gguf is None and target.adapter is not None and target.adapter.parent.name == "export":
            files = sorted(target.adapter.parent.glob("*.gguf"), key=lambda file: file.stat().st_size)
            target = target.model_copy(update={"gguf": files[0]}) if files else target
        return api.ChatSession(target)

    async def _loaded(self, session: api.ChatSession) -> None:
        self.session = session
        model = session.target.adapter or session.target.model or session.target.gguf
        self.set_heading(f"whet · chat · {plain(str(model), 90)}")
        who = order(session.target)
        self.chats = {one: Conversation(one) for one in who}
        for one in who:
            column = VerticalScroll(id=f"voice-{one}", classes="voice")
            name = session.target.gguf.name if one == "gguf" and session.target.gguf else NAMES[one]
            column.border_title = Text(plain(name, 40))  # a file's name, never markup
            await self.query_one("#voices").mount(column)
        say = self.query_one("#say", Input)
        say.disabled, say.placeholder = False, "Say something; enter asks all voices"
        say.focus()
        self.say()

    @on(Input.Submitted, "#say")
    def _submitted(self, event: Input.Submitted) -> None:
        question = event.value.strip()
        if not question or self.answering is not None:
            return
        event.input.value = ""
        self._ask(question)

    def _ask(self, question: str) -> None:
        self.last = question
        for who in self.chats:
            self._append(who, Text(f"› {printable(question)}", "bold"), "question")
        self.in_background(lambda: self._answer(question), lambda _: self._answered(), group="answer")

    def _answer(self, question: str) -> None:
        """On a thread: one voice after the other, so that each gets the whole machine."""
        session = self.session
        assert session is not None
        for who, chat in self.chats.items():
            messages = chat.asked(question, self.sampling.system)
            self.app.call_from_thread(self._begin, who)
            answer = ""
            for text, end in pieces(self._stream(session, chat, messages), _clock(), DRAWN_EVERY):
                answer += text
                self.app.call_from_thread(self._grow, who, answer, end)
            chat.heard(answer)

    def _stream(
        self, session: api.ChatSession, chat: Conversation, messages: list[dict[str, str]]
    ) -> Iterator[tuple[str, bool]]:
        sampling = self.sampling
        for piece in session.ask(messages, chat.who, sampling.max_new_tokens, sampling.temperature):
            cut = "" if not piece.end or piece.stopped else " […]"
            yield piece.text + cut, piece.end

    def _answered(self) -> None:
        self.answering = None
        self.say()

    def failed(self, error: BaseException) -> None:
        """A voice that died: the question is taken back, so that it can be asked again."""
        for chat in self.chats.values():
            chat.retract()
        self.answering = None
        super().failed(error)

    def _begin(self, who: str) -> None:
        self.answering = who
        self._append(who, Text("…", "dim"), "answer")
        self.say()

    def _grow(self, who: str, answer: str, end: bool) -> None:
        try:
            column = self.query_one(f"#voice-{who}", VerticalScroll)
        except NoMatches:  # the screen was left in the middle of an answer
            return
        column.query(".answer").last(Static).update(Text(printable(answer) + ("" if end else " ▌")))
        column.scroll_end(animate=False)

    def _append(self, who: str, text: Text, kind: str) -> None:
        column = self.query_one(f"#voice-{who}", VerticalScroll)
        column.mount(Static(text, classes=kind))
        column.scroll_end(animate=False)

    def action_ask_guide(self) -> None:
        """As `/`, which is typed into the question here."""
        self.whet.action_ask()

    def action_copy_forms(self) -> None:
        """As `y`, likewise."""
        self.whet.action_copy()

    def action_again(self) -> None:
        """The last question once more, in a new conversation."""
        if self.last and self.answering is None:
            question = self.last
            self.action_forget()
            self._ask(question)

    def action_forget(self) -> None:
        """A new conversation with all voices."""
        for who in self.chats:
            self.chats[who] = Conversation(self.chats[who].who)
            self.query_one(f"#voice-{who}", VerticalScroll).remove_children()

    def action_longer(self, factor: float) -> None:
        """More or fewer tokens."""
        self.sampling.longer(factor)
        self._show_sampling()

    def action_warmer(self, by: float) -> None:
        """Temperature up or down."""
        self.sampling.warmer(by)
        self._show_sampling()

    def _show_sampling(self) -> None:
        self.query_one("#sampling", Static).update(Text(self.sampling.words(), "dim", no_wrap=True))

    def action_prompt(self) -> None:
        """The conversation as the model reads it, token by token."""
        session = self.session
        if session is None or not self.last or session.target.model is None:
            self.notify("Ask something first, of a model that lies here with its tokenizer.", timeout=4)
            return
        from .chat_prompt import PromptCard, prompt_of

        model, turns = session.target.model, next(iter(self.chats.values())).turns
        system = self.sampling.system
        self.in_background(
            lambda: prompt_of(model, turns, system),
            lambda rows: self.app.push_screen(PromptCard(rows)),
            "prompt",
        )

    def advice(self) -> Sequence[Advice]:
        if self.session is None:
            return (Advice("Loading the models into a process of their own; nothing else waits for it."),)
        if self.answering is not None:
            return (Advice(f"{NAMES[self.answering]} answers; the others follow."),)
        if not self.last:
            held = "base and tuned" if "base" in self.chats else "the model"
            return (Advice(f"Ask what your data is about, and compare {held}.", "enter"),)
        return (
            Advice("Not what it learnt? Look at the prompt as tokens.", "f4"),
            Advice("The same question in a new conversation.", "f5"),
        )

    def actions(self) -> Sequence[Action]:
        return (chat_action(self.target, self.last or "Hello"),)


def _clock() -> Iterator[float]:
    while True:
        yield time.monotonic()
