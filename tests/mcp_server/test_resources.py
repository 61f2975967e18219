"""Resources and prompts, read by a client of either era."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from support.tiny_runs import create_run, tiny_recipe, write_chat_rows

from whet.engine import api
from whet.engine.demo import MODEL_DIR
from whet.engine.runs.events import EvalEvent, EventLog, ExportEvent, SampleEvent, StepEvent
from whet.engine.runs.store import RunDir
from whet.mcp_server.options import Options
from whet.mcp_server.resources import CURVE_POINTS, GUIDE
from whet.mcp_server.server import Server

STEPS = 200


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    """A run with a curve, an evaluation, answers full of mischief, a proven file; no training was needed."""
    run = create_run(tiny_recipe(Path(MODEL_DIR), write_chat_rows(tmp_path / "rows.jsonl")))
    log = EventLog(run.events, 1)
    for number in range(1, STEPS + 1):
        log.append(
            StepEvent(
                step=number, total_steps=STEPS, epoch=0.1, loss=2 - number / STEPS, learning_rate=1e-3,
                grad_norm=1.0, tokens=8, supervised_tokens=4, seconds=0.1, memory_bytes=1,
            )
        )  # fmt: skip
    log.append(
        EvalEvent(
            step=STEPS, loss=1.1, supervised_tokens=4, seconds=0.1, best=True, metrics={"ndcg@10": 0.75}
        )
    )
    log.append(SampleEvent(step=0, prompt="Hi?", answer="\x1b[2Jgone", stopped=True))
    log.append(SampleEvent(step=STEPS, prompt="Hi?", answer="Hello, hf_abcdefghijklmnop.", stopped=True))
    log.append(ExportEvent(kind="smoke", path="/x/model.gguf", bytes=1 << 20, detail={"status": "pass"}))
    log.close()
    yield run


def read(tmp_path: Path, era: str, uri: str) -> str:
    async def ask() -> str:
        async with Client(Server(Options(root=tmp_path)), mode=era) as client:
            (content,) = (await client.read_resource(uri)).contents
            return content.text  # type: ignore[union-attr]

    return anyio.run(ask)


@pytest.mark.parametrize("era", ["legacy", "auto"])
def test_the_guide_is_short_and_names_tools_that_exist(tmp_path: Path, era: str) -> None:
    text = read(tmp_path, era, "whet://guide")
    assert text == GUIDE.read_text()
    assert len(text.split()) < 600


def test_schema_and_findings_are_the_engines_own(tmp_path: Path) -> None:
    assert json.loads(read(tmp_path, "auto", "whet://recipe-schema")) == api.schema()
    every = read(tmp_path, "auto", "whet://findings")
    assert all(f"- {id}: " in every for id in api.catalogue())
    one = read(tmp_path, "auto", "whet://findings/D01")
    assert api.explain("D01").fix in one


@pytest.mark.parametrize("era", ["legacy", "auto"])
def test_a_run_is_seen_from_five_sides(run: RunDir, tmp_path: Path, era: str) -> None:
    assert json.loads(read(tmp_path, era, f"run://{run.id}/status"))["status"] == "queued"
    assert f"name: {MODEL_DIR}" in read(tmp_path, era, f"run://{run.id}/config")
    metrics = json.loads(read(tmp_path, era, f"run://{run.id}/metrics"))
    assert len(metrics["steps"]) <= CURVE_POINTS and metrics["steps"][-1]["step"] == STEPS
    assert metrics["evals"] == [{"step": STEPS, "loss": 1.1, "best": True, "metrics": {"ndcg@10": 0.75}}]
    run.log.write_text("one\ntwo\n")
    assert read(tmp_path, era, f"run://{run.id}/log") == "one\ntwo"
    report = read(tmp_path, era, f"run://{run.id}/report")
    assert "Training: 1.995 at first, 1.000 at last." in report and "Verdict: pass" in report
    assert "ndcg@10: 0.750 at first, 0.750 at last." in report
    assert "\x1b" not in report and "hf_abcdefghijklmnop" not in report


@pytest.mark.parametrize("era", ["legacy", "auto"])
def test_what_is_not_there_is_said_as_the_protocol_asks(run: RunDir, tmp_path: Path, era: str) -> None:
    async def refused(uri: str) -> MCPError:
        async with Client(Server(Options(root=tmp_path)), mode=era) as client:
            with pytest.raises(MCPError) as error:
                await client.read_resource(uri)
            return error.value

    for uri, words in (
        ("run://nobody/status", run.id),
        (f"run://{run.id}/diary", "report"),
        ("whet://findings/D99", "D99"),
    ):
        error = anyio.run(refused, uri)
        assert error.code == -32602 and words in error.message


@pytest.mark.parametrize("era", ["legacy", "auto"])
def test_prompts_hold_calls_with_what_the_person_chose(tmp_path: Path, era: str) -> None:
    async def ask() -> list[str]:
        async with Client(Server(Options(root=tmp_path)), mode=era) as client:
            assert {one.name for one in (await client.list_prompts()).prompts} == {
                "finetune", "fix_run", "ship_gguf",
            }  # fmt: skip
            answers = [
                await client.get_prompt("finetune", {"data": "chats.jsonl"}),
                await client.get_prompt("fix_run", {"run_id": "r1"}),
                await client.get_prompt("ship_gguf", {"run_id": "r1", "types": "q8_0, f16"}),
            ]
            return [answer.messages[0].content.text for answer in answers]  # type: ignore[union-attr]

    finetune, fix_run, ship = anyio.run(ask)
    assert 'plan_create(data="chats.jsonl", goal="quality")' in finetune
    assert 'run_diagnose(run_id="r1")' in fix_run
    assert 'export_start(run_id="r1", types=["q8_0", "f16"])' in ship
