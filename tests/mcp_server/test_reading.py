"""Long looks at data: told as they go on, given up with their call, and never in the way of other calls."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from anyio.to_thread import run_sync
from mcp import Client
from support.fake_runs import until
from support.tiny_runs import write_chat_rows

from whet.engine.settings import settings
from whet.mcp_server.tools import reading

pytestmark = pytest.mark.anyio
Connect = Callable[..., Client]
ROWS = 6000


@pytest.fixture
def rows(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set that takes a few seconds to read, each thousand rows of it told."""
    monkeypatch.setattr(reading, "TELL_SECONDS", 0.0)
    return write_chat_rows(tmp_path / "rows.jsonl", rows=ROWS)


async def test_reading_is_told_and_only_grows(connect: Connect, rows: Path) -> None:
    told: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)
        assert total is None and message == f"{progress:,.0f} rows read"

    async with connect() as client:
        for tool in ("dataset_inspect", "plan_create", "template_preview"):
            told.clear()
            arguments = {"data": rows.name, "model": "demo"}
            result = await client.call_tool(tool, arguments, progress_callback=hear)
            assert not result.is_error
            assert told == sorted(set(told))
            assert tool == "template_preview" or max(told) >= ROWS // 1000 * 1000


async def test_a_call_that_is_given_up_ends_its_reading(connect: Connect, rows: Path, home: Path) -> None:
    """The client goes away after the first rows: nothing half written stays, and the log knows of it."""
    async with connect() as client:
        with anyio.CancelScope() as scope:

            async def leave(progress: float, total: float | None, message: str | None) -> None:
                scope.cancel()

            await client.call_tool(
                "plan_create", {"data": rows.name, "model": "demo"}, progress_callback=leave
            )
        assert scope.cancelled_caught
        audit = home / "audit.jsonl"
        await run_sync(until, audit.exists, "the line of the call")
        assert json.loads(audit.read_text())["outcome"] == "cancelled"
        assert [one for one in (settings().cache / "data").iterdir() if "." in one.name] == []
        assert not (await client.call_tool("job_list", {})).is_error


async def test_others_find_a_thread_while_many_read(connect: Connect) -> None:
    """More looks than turns: those that have none yet hold no thread."""
    release, begun = threading.Event(), []

    def work(progress: reading.Progress) -> None:
        begun.append(1)
        release.wait(30)

    class Silent:
        async def report_progress(self, *told: Any) -> None:
            raise AssertionError("nothing was read")

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(partial(reading.read, work, cast(Any, Silent())))
        while len(begun) < reading.AT_ONCE.total_tokens:
            await anyio.sleep(0.01)
        assert await run_sync(lambda: "a thread") == "a thread"
        assert len(begun) == reading.AT_ONCE.total_tokens
        release.set()
    assert len(begun) == 50
