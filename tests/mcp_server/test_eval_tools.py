"""Chats and evaluations by tool call: base beside tuned, one model at a time, bounded in time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from support.client_calls import refused, said
from support.exported import adapter, small_base
from support.fake_runs import SOURCE, until, write_job

from whet.engine import api
from whet.engine.runs import keys, locks, supervisor
from whet.engine.runs.jobs import EvaluateJob
from whet.engine.runs.store import RunDir, RunStore
from whet.mcp_server import chats
from whet.mcp_server.tools import evaluate

pytestmark = pytest.mark.anyio
Connect = Callable[..., Client]


class Speaker:
    """A chat session that answers at once, or never; it remembers what was opened and closed."""

    log: list[str]
    silent = False

    def __init__(self, target: api.ChatTarget, seconds: float | None = None) -> None:
        self.name = str(target.gguf or target.model)
        self.log.append(f"open {Path(self.name).name}")

    def ask(
        self, messages: Any, who: Any, max_new_tokens: int, temperature: float, seconds: float | None = None
    ) -> Any:
        yield api.ChatPiece(who=who, text=f"{who}: {messages[-1]['content']}")
        if self.silent:
            raise api.WhetError("chat.slow", "The model took too long and was ended.")
        yield api.ChatPiece(who=who, end=True, stopped=True)

    def close(self) -> None:
        self.log.append(f"close {Path(self.name).name}")


@pytest.fixture
def speaker(monkeypatch: pytest.MonkeyPatch) -> type[Speaker]:
    kind = type("Fresh", (Speaker,), {"log": []})
    monkeypatch.setattr(api, "ChatSession", kind, raising=False)
    return kind


@pytest.fixture
def trained(home: Path, demo_plan: api.Plan) -> RunDir:
    """A finished run whose weights are files without weights."""
    run = RunStore().create(demo_plan, "test")
    (run.export / "adapter").mkdir()
    run.write_state(status="finished", launched=1.0)
    return run


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").touch()
    return path


@pytest.mark.parametrize("era", ["auto"])
async def test_base_and_tuned_answer_the_same_question(connect: Connect, tmp_path: Path) -> None:
    """Real models: an adapter folder in the root names its base there."""
    shutil.copytree(small_base(), tmp_path / "base")
    shutil.copytree(adapter(size=0.3), tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(small_base()), str(tmp_path / "base")))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(small_base() / name, tmp_path / "adapter" / name)
    async with connect() as client:
        chat = partial(said, client, "model_chat", target="adapter", max_new_tokens=8)
        answers = {one["who"]: one["text"] for one in (await chat(prompt="What is a rank?"))["answers"]}
        assert set(answers) == {"tuned", "base"} and answers["tuned"] != answers["base"]
        talk = [{"role": "user", "content": "What is a rank?"}]
        (again,) = (await chat(messages=talk, voices=["base"]))["answers"]
        assert again["text"] == answers["base"]


async def test_one_model_is_open_at_a_time_and_none_after_the_session(
    connect: Connect, speaker: type[Speaker], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        folder(tmp_path / name)
    async with connect() as client:
        for target in ("a", "a", "b"):
            result = await said(client, "model_chat", target=target, prompt="Hi")
            assert result["answers"][0]["text"] == "tuned: Hi"
        assert speaker.log == ["open a", "close a", "open b"]
    assert speaker.log[3:] == ["close b"]


async def test_an_idle_model_is_closed(
    connect: Connect, speaker: type[Speaker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chats.Chats.__init__, "__defaults__", (0.01,))
    folder(tmp_path / "a")
    async with connect() as client:
        await said(client, "model_chat", target="a", prompt="Hi")
        until(lambda: speaker.log == ["open a", "close a"], "the model to be closed")


async def test_a_chat_is_bounded_in_time(
    connect: Connect, speaker: type[Speaker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker.silent = True
    folder(tmp_path / "a")
    async with connect() as client:
        cut = await said(client, "model_chat", target="a", prompt="Hi")
        assert cut["answers"][0]["end"] == "time" and "ran out of time" in cut["warnings"][0]
        assert speaker.log == ["open a", "close a"]
        monkeypatch.setattr(evaluate, "CHAT_SECONDS", 0.0)
        monkeypatch.setattr(chats, "_load", lambda target, loading: None)
        words = await refused(client, "model_chat", target="a", prompt="Hi")
        assert words.startswith("[chat.loading]") and "same call again" in words


async def test_a_run_speaks_with_all_its_voices(
    connect: Connect, speaker: type[Speaker], trained: RunDir
) -> None:
    (trained.export / "x-q8_0.gguf").write_bytes(b"GGUF")
    async with connect() as client:
        chat = partial(said, client, "model_chat", target=trained.id, prompt="Hi")
        assert [one["who"] for one in (await chat())["answers"]] == ["gguf", "tuned", "base"]
        assert [one["who"] for one in (await chat(voices=["base"]))["answers"]] == ["base"]
        assert speaker.log[-1] == f"open {Path(str(trained.load_plan().model.path)).name}"


async def test_what_cannot_be_asked_is_refused(
    connect: Connect, speaker: type[Speaker], trained: RunDir, demo_plan: api.Plan, tmp_path: Path
) -> None:
    folder(tmp_path / "a")
    outside = folder(tmp_path / "adapter")
    (outside / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    young = RunStore().create(demo_plan, "test")
    with locks.hold(young.lock):
        young.write_state(status="running", launched=1.0)
        async with connect() as client:
            for wrong, code in {
                "/etc": "path.outside",
                "../..": "path.outside",
                "adapter": "path.outside",
                "nobody": "run.unknown",
                "none/here.gguf": "model.not_found",
                young.id: "chat.nothing_trained",
            }.items():
                words = await refused(client, "model_chat", target=wrong, prompt="Hi")
                assert words.startswith(f"[{code}]"), words
            ask = partial(refused, client, "model_chat", target="a")
            assert "[chat.voice]" in await ask(prompt="Hi", voices=["base"])
            for messages in (
                [],
                [{"role": "robot", "content": "x"}],
                [{"role": "assistant", "content": "x"}],
            ):
                assert "[chat.messages]" in await ask(messages=messages)
            assert "[chat.messages]" in await ask()
            assert "[argument.invalid]" in await ask(prompt="Hi", max_new_tokens=100000)
    assert speaker.log == []


async def test_an_evaluation_is_a_job_started_once(
    connect: Connect, trained: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    script = write_job(tmp_path, "context.summary['base_loss'] = 2.5")
    launch = partial(supervisor.launch, worker=script)
    monkeypatch.setattr("whet.engine.job_starts.start_once", partial(keys.start_once, launch=launch))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    async with connect() as client:
        start = partial(
            said, client, "eval_run", run_id=trained.id, data="rows.jsonl", max_rows=5, prompts=["Hi"]
        )
        first, again = await start(idempotency_key="k"), await start(idempotency_key="k")
        assert first["run_id"] == again["run_id"] and first["started_by"] == "mcp:tester"
        job = api.find(first["run_id"]).load_job()
        assert job == EvaluateJob(parent=trained.id, data=str(rows), max_rows=5, prompts=["Hi"])
        assert (await said(client, "job_wait", run_id=first["run_id"]))["status"] == "finished"
        shown = await said(client, "run_get", run_id=first["run_id"])
        assert shown["facts"]["result"] == {"base_loss": 2.5} and shown["facts"]["parent"] == trained.id
        assert (await said(client, "run_get", run_id=trained.id))["entries"] == [first["run_id"]]
        evaluate_run = partial(refused, client, "eval_run", run_id=trained.id)
        assert "[path.outside]" in await evaluate_run(data="/etc/passwd")
        assert "[run.key_reused]" in await evaluate_run(data="rows.jsonl", idempotency_key="k")
