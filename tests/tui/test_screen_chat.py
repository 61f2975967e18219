"""Chat: every voice answers the same question in its own column, with its own history."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.screens import SIZES, same_as_committed, shown, until, until_shown
from textual.widgets import Input

from whet.engine import api
from whet.engine.demo import MODEL_DIR
from whet.tui.app import WhetApp
from whet.tui.chat_log import Conversation, Sampling, order, pieces
from whet.tui.screens.ask import AskCard
from whet.tui.screens.cards import CopyCard, ErrorCard
from whet.tui.screens.chat import ChatScreen
from whet.tui.screens.chat_prompt import PromptCard
from whet.tui.screens.help import HelpScreen

ANSWERS = {"base": "I do not know.", "tuned": "Sixteen\x1b[2J is right.", "gguf": "Sixteen is right."}


class Voices:
    """Stands for the models' process: answers word by word, and keeps what it was asked."""

    def __init__(self, target: api.ChatTarget, fails: bool = False) -> None:
        self.target, self.fails = target, fails
        self.asked: list[tuple[str, list[dict[str, str]], int, float]] = []
        self.closed = False

    def ask(
        self, messages: list[dict[str, str]], who: api.Who, max_new_tokens: int, temperature: float
    ) -> Iterator[api.ChatPiece]:
        if self.fails:
            raise api.WhetError("chat.ended", "The model's process ended with code -9.", "Usually memory.")
        self.asked.append((who, messages, max_new_tokens, temperature))
        for word in ANSWERS[who].split(" "):
            yield api.ChatPiece(who=who, text=f"{word} ")
        yield api.ChatPiece(who=who, end=True, stopped=who != "base")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Voices:
    monkeypatch.setenv("WHET_HOME", str(tmp_path))
    target = api.ChatTarget(
        model=Path(MODEL_DIR), adapter=Path("/run/adapter"), gguf=Path("/run/demo-q4_k_m.gguf")
    )
    made = Voices(target)
    monkeypatch.setattr(api, "chat_target", lambda name: target)
    monkeypatch.setattr(api, "ChatSession", lambda target: made)
    return made


async def say(pilot: Any, words: str) -> None:
    screen = pilot.app.screen
    await until(pilot, lambda: not screen.query_one("#say", Input).disabled, "the models")
    screen.query_one("#say", Input).value = words
    await pilot.press("enter")


@pytest.mark.parametrize("size", SIZES)
def test_three_voices_side_by_side(voices: Voices, size: tuple[int, int]) -> None:
    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=size) as pilot:
            app.open("chat", "demo-run")
            await pilot.pause()
            screen = app.screen
            assert isinstance(screen, ChatScreen)
            await say(pilot, "How high a rank?")
            await until(pilot, lambda: len(voices.asked) == 3 and screen.answering is None, "three answers")
            await until_shown(pilot, "I do not know.")
            await same_as_committed(app, "chat")
            assert "\x1b" not in shown(app)
            await say(pilot, "Why?")
            await until(pilot, lambda: len(voices.asked) == 6 and screen.answering is None, "three more")
            who, messages, _, _ = voices.asked[4]
            assert who == "tuned" and [one["role"] for one in messages] == ["user", "assistant", "user"]
            assert messages[1]["content"].startswith("Sixteen")
            await pilot.press("escape")
            await until(pilot, lambda: voices.closed, "the session's end")

    anyio.run(look)


def test_settings_reach_the_model_and_the_prompt_is_shown_as_tokens(voices: Voices) -> None:
    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=(120, 36)) as pilot:
            app.open("chat", "demo-run")
            await pilot.pause()
            screen = app.screen
            assert isinstance(screen, ChatScreen)
            await pilot.press("f7", "f9", "f9", "f8")
            await until_shown(pilot, "temperature 0.1 · at most 512 tokens")
            await say(pilot, "Hello")
            await until(pilot, lambda: len(voices.asked) == 3 and screen.answering is None, "answers")
            assert voices.asked[0][2:] == (512, 0.1)
            await pilot.press("f4")
            await until(pilot, lambda: isinstance(app.screen, PromptCard), "the prompt")
            await until_shown(pilot, "<|start_header_id|>user<|end_header_id|>")
            await pilot.press("escape", "f5")
            await until(pilot, lambda: len(voices.asked) == 6, "the question anew")
            assert voices.asked[3][1] == [{"role": "user", "content": "Hello"}]

    anyio.run(look)


def test_a_model_that_dies_is_a_card_and_the_question_can_be_asked_again(voices: Voices) -> None:
    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=(80, 24)) as pilot:
            app.open("chat", "demo-run")
            await pilot.pause()
            screen = app.screen
            voices.fails = True
            await say(pilot, "Hello")
            await until(pilot, lambda: isinstance(app.screen, ErrorCard), "the card")
            assert "chat.ended" in shown(app) and "Usually memory." in shown(app)
            await pilot.press("escape")
            await until(pilot, lambda: app.screen is screen, "the chat")
            voices.fails = False
            await say(pilot, "Hello")
            await until(pilot, lambda: len(voices.asked) == 3, "answers")
            assert voices.asked[0][1] == [{"role": "user", "content": "Hello"}]

    anyio.run(look)


def test_voices_come_base_first_and_sampling_stays_in_bounds() -> None:
    assert order(api.ChatTarget(model=Path("m"), adapter=Path("a"), gguf=Path("g"))) == [
        "base",
        "tuned",
        "gguf",
    ]
    assert order(api.ChatTarget(gguf=Path("g"))) == ["gguf"]
    sampling = Sampling()
    for _ in range(30):
        sampling.longer(2)
        sampling.warmer(0.1)
    assert (sampling.max_new_tokens, sampling.temperature) == (2048, 2.0)
    for _ in range(30):
        sampling.longer(0.5)
        sampling.warmer(-0.1)
    assert (sampling.max_new_tokens, sampling.temperature) == (16, 0.0)


def test_pieces_are_joined_and_the_last_always_comes() -> None:
    texts = iter([("a", False), ("b", False), ("c", False), ("d", True)])
    assert list(pieces(texts, iter([0.0, 0.1, 0.3, 0.35]), every=0.2)) == [
        ("a", False),
        ("bc", False),
        ("d", True),
    ]


def test_a_question_without_an_answer_is_taken_back() -> None:
    chat = Conversation("base")
    assert chat.asked("Hi", "Be brief.") == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
    ]  # fmt: skip
    chat.retract()
    chat.retract()
    assert chat.turns == []


def shows(app: WhetApp, kind: type) -> bool:
    return isinstance(app.screen, kind)


def test_in_the_question_letters_are_typed_and_f_keys_help(voices: Voices) -> None:
    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=(80, 24)) as pilot:
            app.open("chat", "demo-run")
            await until(pilot, lambda: isinstance(app.focused, Input), "the question")
            await until_shown(pilot, "f1 help")
            await until(pilot, lambda: "? help" not in shown(app), "no key that would be typed")
            await pilot.press("question_mark", "slash", "y", "q")
            assert isinstance(app.focused, Input) and app.focused.value == "?/yq"
            for key, kind in (("f1", HelpScreen), ("f2", AskCard), ("f3", CopyCard)):
                await pilot.press(key)
                await until(pilot, partial(shows, app, kind), key)
                await pilot.press("escape")
                await until(pilot, lambda: isinstance(app.screen, ChatScreen), "the chat again")
            assert isinstance(app.focused, Input)

    anyio.run(look)
