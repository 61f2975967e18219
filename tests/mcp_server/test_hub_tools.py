"""Nothing goes to the hub unless a person says so, or the operator did; and nothing unproven."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import ElicitRequestFormParams, ElicitResult
from support.client_calls import refused, said
from support.hub_standin import StandIn, in_place_of_the_hub
from support.tool_calls import parsed

from whet.engine import api
from whet.engine.export.verdict import Proof, Verdict, fingerprint, save_verdict
from whet.engine.runs.store import RunDir, RunStore
from whet.mcp_server.tools import hub

pytestmark = pytest.mark.anyio
Connect = Callable[..., Client]


class Person:
    """Answers what is asked, and remembers it."""

    def __init__(self, action: str, upload: bool = True) -> None:
        self.answer = ElicitResult(action=action, content={"upload": upload} if action == "accept" else None)  # type: ignore[arg-type]
        self.asked: list[str] = []

    async def __call__(self, context: Any, params: Any) -> ElicitResult:
        assert isinstance(params, ElicitRequestFormParams)
        self.asked.append(params.message)
        return self.answer


@pytest.fixture
def uploaded(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A hub, and what reached it."""
    with in_place_of_the_hub(StandIn(), monkeypatch) as standin:
        yield standin


@pytest.fixture
def trained(home: Path, demo_plan: api.Plan) -> RunDir:
    run = RunStore().create(demo_plan, "test")
    for name in ("adapter", "merged"):
        (run.export / name).mkdir()
        (run.export / name / "weights.safetensors").write_bytes(bytes(2_000_000))
    run.write_state(status="finished", launched=1.0)
    return run


def proven(run: RunDir, status: Any = "pass") -> Path:
    gguf = run.export / "m-q4_k_m.gguf"
    gguf.write_bytes(b"GGUF" + bytes(1000))
    proof = Proof(name="logits", status=status, summary="KL is 0.9 nat.")
    save_verdict(Verdict.of([proof], gguf, fingerprint=fingerprint(gguf)), gguf)
    return gguf


async def test_who_is_asked_and_agrees_uploads(connect: Connect, uploaded: StandIn, trained: RunDir) -> None:
    person = Person("accept")
    async with connect(elicitation_callback=person) as client:
        result = await said(client, "hub_push", run_id=trained.id, repo="me/model")
    assert result["address"] == f"{uploaded.url}/me/model" and result["bytes"] == 2_000_000
    assert uploaded.repositories["me/model"].private
    assert uploaded.names("me/model") == ["README.md", "weights.safetensors"]
    assert b"library_name: peft" in uploaded.content("me/model", "README.md")
    (question,) = person.asked
    assert all(word in question for word in ("adapter", trained.id, "2.0 MB", "me/model", "private"))


@pytest.mark.parametrize(
    "person",
    [Person("decline"), Person("cancel"), Person("accept", upload=False)],
    ids=lambda p: p.answer.action,
)
async def test_who_does_not_agree_uploads_nothing(
    connect: Connect, uploaded: StandIn, trained: RunDir, person: Person, home: Path
) -> None:
    async with connect(elicitation_callback=person) as client:
        words = await refused(client, "hub_push", run_id=trained.id, repo="me/model", private=False)
    assert words.startswith("[hub.declined]") and "PUBLIC" in person.asked[-1]
    assert uploaded.seen == [] and '"outcome": "hub.declined"' in (home / "audit.jsonl").read_text()


async def test_where_nobody_can_be_asked_the_operator_decides(
    connect: Connect, uploaded: StandIn, trained: RunDir
) -> None:
    proven(trained)
    async with connect() as client:
        words = await refused(client, "hub_push", run_id=trained.id, repo="me/model")
        assert words.startswith("[hub.unasked]") and "--allow-push" in words
    assert uploaded.seen == []
    async with connect(options={"push_unasked": True}) as client:
        await said(client, "hub_push", run_id=trained.id, repo="me/model", what="gguf")
    names = ["README.md", "m-q4_k_m.gguf", "m-q4_k_m.verdict.json"]
    assert uploaded.names("me/model") == names
    async with connect(options={"toolsets": frozenset({"inspect"})}) as client:
        assert "[tool.off]" in await refused(client, "hub_push", run_id=trained.id, repo="me/model")
    async with connect(options={"push_unasked": True, "read_only": True}) as client:
        assert "[tool.off]" in await refused(client, "hub_push", run_id=trained.id, repo="me/model")


async def test_what_is_unproven_is_refused_before_anybody_is_asked(
    connect: Connect, uploaded: StandIn, trained: RunDir
) -> None:
    person = Person("accept")
    async with connect(elicitation_callback=person) as client:

        async def push(**arguments: Any) -> str:
            return await refused(
                client, "hub_push", **{"run_id": trained.id, "repo": "me/model", **arguments}
            )

        assert "[hub.nothing]" in await push(what="gguf")
        proven(trained, "fail")
        assert "[hub.unproven]" in await push(what="gguf")
        for repo in ("model", "a/b/c", "../x", "me/mo del", "https://hub/me"):
            assert "[hub.repo]" in await push(repo=repo)
        assert "[run.unknown]" in await push(run_id="../../x")
        assert "[argument.unknown]" in await push(token="hf_abcdefghijklmnop")
        assert not person.asked and uploaded.seen == []
        forced = await said(
            client, "hub_push", run_id=trained.id, repo="me/model", what="gguf", force_unproven=True
        )
        assert forced["address"] and "NOT proven" in person.asked[0]


async def test_a_long_upload_goes_on_and_is_joined_unasked(
    connect: Connect, uploaded: StandIn, trained: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    gate = threading.Event()
    push = api.push

    def slow(*arguments: Any, **rest: Any) -> str:
        assert gate.wait(20)
        return push(*arguments, **rest)

    monkeypatch.setattr(api, "push", slow)
    monkeypatch.setattr(hub, "PUSH_SECONDS", 0.0)
    person = Person("accept")
    async with connect(elicitation_callback=person) as client:
        first = await said(client, "hub_push", run_id=trained.id, repo="me/model")
        assert first["address"] is None and "still going up" in first["summary"]
        other = Person("decline")
        async with connect(elicitation_callback=other) as asking:
            public = {"run_id": trained.id, "repo": "me/model", "private": False}
            assert "[hub.declined]" in await refused(asking, "hub_push", **public)
        assert "PUBLIC" in other.asked[0], "what goes up privately is no word for more"
        gate.set()
        monkeypatch.setattr(hub, "PUSH_SECONDS", 20.0)
        tool, arguments = parsed(first["next"][0])
        joined = await said(client, tool, **arguments)
    assert joined["address"] == f"{uploaded.url}/me/model" and len(person.asked) == 1
    assert sum("repos/create" in line for line in uploaded.seen) == 1


async def test_the_hubs_own_refusal_is_told_and_no_token_is_shown(
    connect: Connect, home: Path, trained: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WHET_OFFLINE")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    async with connect(options={"push_unasked": True}) as client:
        words = await refused(client, "hub_push", run_id=trained.id, repo="me/model")
        assert words.startswith("[hub.no_token]")
        monkeypatch.setenv("WHET_OFFLINE", "1")
        assert "[hub.offline]" in await refused(client, "hub_push", run_id=trained.id, repo="me/model")
