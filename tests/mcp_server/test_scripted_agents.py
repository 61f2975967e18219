"""Agents without a thought of their own: they make the first call of `next`, again and again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_runs import write_chat_rows
from support.tool_calls import Caller, parsed

MOST = 120
"""Calls, waiting included: 120 waits of at most 50 seconds are more than any run here takes."""


def walk(tools: Caller, facts: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Follow until a proof of GGUF files was told; the tools called on the way, and the last result."""
    path: list[str] = []
    while len(path) < MOST:
        call = facts["next"][0]
        path.append(parsed(call)[0])
        facts = tools.follow(call)
        if path[-1] == "gguf_smoke_test" and "verdict" in facts and facts["verdict"]:
            return path, facts
    raise AssertionError(f"{MOST} calls led to no verdict: {path[-10:]}")


@pytest.mark.slow  # two to three minutes: `make mcp-agents`; the other agent goes the same way on fewer rows
def test_the_demo_from_a_look_at_the_machine_to_a_proven_file(root: Path) -> None:
    path, proven = walk(Caller(root, "auto"), Caller(root, "auto")("env_inspect"))
    order = ["dataset_inspect", "plan_create", "run_start", "job_wait", "gguf_smoke_test"]
    assert [name for name in dict.fromkeys(path) if name in order] == order
    assert proven["verdict"] == "pass"


def test_a_broken_data_set_is_read_mended_trained_and_shipped(root: Path) -> None:
    """The person names the file; the finding names the fix, which goes back as it came."""
    rows = write_chat_rows(root / "chats.jsonl", rows=160)
    good = rows.read_text().splitlines()
    empty = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": ""}]}
    rows.write_text("\n".join([*good, "{broken", *[json.dumps(empty)] * 3]) + "\n")
    tools = Caller(root, "legacy")
    seen = tools("dataset_inspect", data="chats.jsonl")
    found = {one["id"]: one["fix"] for one in seen["findings"]}
    assert found.get("D15")
    mended = {**found["D15"], "training.max_steps": 8}
    first = tools("plan_create", data="chats.jsonl", model="demo", changes=mended)
    assert first["blocked"] == [] and all(one["severity"] != "error" for one in first["findings"])
    path, proven = walk(tools, first)
    assert "run_start" in path and proven["verdict"] in ("pass", "warn")
