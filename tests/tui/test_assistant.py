"""Questions in people's words lead to the passage meant; a model writes only where one was named."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from textual.binding import Binding

from whet.engine.api import WhetError, catalogue, schema
from whet.tui.app import WhetApp
from whet.tui.assistant import writer
from whet.tui.assistant.passages import Passage, passages, topics
from whet.tui.assistant.search import Index
from whet.tui.screens.chat import ChatScreen
from whet.tui.screens.compare import CompareScreen
from whet.tui.screens.doctor import DoctorScreen
from whet.tui.screens.export import ExportScreen
from whet.tui.screens.home import HomeScreen
from whet.tui.screens.new_run import NewRunScreen
from whet.tui.screens.new_run.data_step import DataStep
from whet.tui.screens.new_run.model_step import ModelStep
from whet.tui.screens.new_run.settings_step import SettingsStep
from whet.tui.screens.new_run.template_step import TemplateStep
from whet.tui.screens.run import RunScreen
from whet.tui.screens.run.log import LogScreen
from whet.tui.widgets.finding_card import StepList
from whet.tui.widgets.run_table import RunTable
from whet.tui.widgets.token_view import TokenView

QUESTIONS = {
    "why is my loss zero": "D01",
    "out of memory": "L11",
    "OOM in evaluation": "T08",
    "how do I resume a run": "run",
    "what is adapter.rank": "adapter.rank",
    "my model never stops talking": "D07",
    "answers end in the middle of a sentence": "D03",
    "how can I make training faster": "L08",
    "double BOS": "D05",
    "gibberish in llama.cpp": "X03",
    "ssh connection lost": "E06",
    "change the colours": "keys",
    "tempalte of another family": "D13",
    "is the disk full at save": "X02",
    "how many rows of data": "data",
    "learning rate": "training.learning_rate",
    "what do agents see": "agents",
    "L09": "L09",
}


@pytest.fixture(scope="module")
def index() -> Index:
    return Index()


@pytest.mark.parametrize(("question", "target"), QUESTIONS.items())
def test_a_question_finds_what_is_meant(index: Index, question: str, target: str) -> None:
    assert target in [one.target for one in index.ask(question)][:4]


def test_every_finding_and_setting_answers_to_its_name(index: Index) -> None:
    settings = {one.target for one in passages() if one.kind == "setting"}
    assert {"training.learning_rate", "model.precision", "accept"} <= settings
    assert {name.split(".")[0] for name in settings} == set(schema()["properties"])
    for name in (*catalogue(), *settings):
        assert index.ask(name)[0].target == name


def test_words_that_stand_nowhere_find_nothing(index: Index) -> None:
    assert index.ask("qqqqqq zzzzzz") == [] and index.ask("") == [] and index.ask('") OR 1') is not None


def test_the_guide_has_no_page_without_paragraphs() -> None:
    assert all(text.startswith("# ") and text.count("\n\n") >= 1 for text in topics().values())


class Replies(BaseHTTPRequestHandler):
    """A server of the kind the writer asks; keeps what it was sent."""

    seen: dict[str, object] = {}  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Replies.seen = {"path": self.path, "key": self.headers["Authorization"], "body": json.loads(body)}
        answer = json.dumps({"choices": [{"message": {"content": " Lower the rank. "}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


FOUND = [Passage("guide", "settings", "Settings", "A smaller rank helps.")]


def test_a_named_server_writes_from_the_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    server = HTTPServer(("127.0.0.1", 0), Replies)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WHET_ASSISTANT", f"http://127.0.0.1:{server.server_port}/v1/")
    monkeypatch.setenv("WHET_ASSISTANT_KEY", "secret")
    monkeypatch.setenv("WHET_ASSISTANT_MODEL", "small")
    try:
        assert writer.write("It overfits?", FOUND) == "Lower the rank."
    finally:
        server.shutdown()
        server.server_close()
    body = Replies.seen["body"]
    assert Replies.seen["path"] == "/v1/chat/completions" and Replies.seen["key"] == "Bearer secret"
    assert isinstance(body, dict) and body["model"] == "small"
    assert "A smaller rank helps." in body["messages"][0]["content"]


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_ASSISTANT", "http://127.0.0.1:9/v1")
    with pytest.raises(WhetError) as error:
        writer.write("It overfits?", FOUND)
    assert error.value.code == "assistant.failed" and "127.0.0.1:9" in error.value.message


def test_nothing_is_asked_of_a_model_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHET_ASSISTANT", raising=False)
    assert writer.configured() == ""


KEYS_OF: dict[str, list[Any]] = {
    "run": [RunScreen, LogScreen],
    "settings": [NewRunScreen, SettingsStep],
    "data": [NewRunScreen, DataStep],
    "models": [NewRunScreen, ModelStep],
    "templates": [NewRunScreen, TemplateStep, TokenView],
    "export": [ExportScreen],
    "compare": [CompareScreen, HomeScreen, RunTable],
    "doctor": [DoctorScreen],
    "chat": [ChatScreen],
    "first-steps": [HomeScreen],
    "keys": [HomeScreen, RunTable, StepList],
    "findings": [],
    "plan": [],
    "agents": [],
}
NAMES = {"question_mark": "?", "slash": "/", "equals_sign": "=", "comma": ","} | {
    "left_square_bracket": "[",
    "right_square_bracket": "]",
}


def test_the_guide_names_keys_that_there_are() -> None:
    assert set(KEYS_OF) == set(topics())
    for page, owners in KEYS_OF.items():
        bound = {
            NAMES.get(key, key)
            for owner in (WhetApp, *owners)
            for binding in Binding.make_bindings(owner.BINDINGS)
            for key in binding.key.split(",")
        }
        told = re.findall(r"`(\S)`|\b(F\d+)\b", topics()[page])
        assert {(one or two).lower() if two else one for one, two in told} <= bound, page
