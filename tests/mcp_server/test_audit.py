"""The audit log: one whole line a writing call, whoever writes, without secrets."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.fake_runs import SOURCE
from support.tool_calls import ERAS, Caller

from whet.mcp_server.audit import LONGEST_ARGUMENT, Audit


def lines(home: Path) -> list[dict[str, Any]]:
    path = home / "audit.jsonl"
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


@pytest.mark.parametrize("era", ERAS)
def test_writing_calls_leave_a_line_and_reading_ones_none(home: Path, tmp_path: Path, era: str) -> None:
    call = Caller(tmp_path, era)
    call("job_list")
    call.refused("run_start", plan_id="none-such", idempotency_key="first")
    call.refused("run_start", plan="none-such")
    call.refused("no_such_tool")
    first, second = lines(home)
    assert first["tool"] == "run_start" and first["outcome"] == "plan.unknown"
    assert first["arguments"] == {"plan_id": '"none-such"', "idempotency_key": '"first"'}
    assert first["who"].startswith("mcp") and first["time"][:2] == "20" and first["time"][-5] in "+-"
    assert second["outcome"] == "argument.unknown"
    assert stat.S_IMODE((home / "audit.jsonl").stat().st_mode) == 0o600


def test_arguments_are_cut_cleaned_and_free_of_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-secret-value")
    audit = Audit(tmp_path / "audit.jsonl")
    audit.write(
        "mcp:\x1b[31mred\n",
        "plan_create",
        {
            "long": "x" * 5000,
            "key": "planted-secret-value",
            "token": "hf_abcdefghijklmnop",
            "escape\x1b[2J": "a\nb\x00",
            "object": {"password": "correct-horse"},
        },
        "ok",
    )
    (text,) = (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    for gone in ("planted-secret", "hf_abc", "correct-horse", "\x1b", "\x00"):
        assert gone not in text
    assert len(json.loads(text)["arguments"]["long"]) < LONGEST_ARGUMENT + 40


def test_several_servers_share_the_file(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from whet.mcp_server.audit import Audit; "
        f"audit = Audit(Path({str(tmp_path)!r}) / 'new' / 'audit.jsonl'); "
        "[audit.write(sys.argv[1], 'run_start', {'n': n, 'pad': 'x' * 290}, 'ok') for n in range(200)]"
    )
    started = [
        subprocess.Popen([sys.executable, "-P", "-c", code, name], env={"PYTHONPATH": str(SOURCE)})
        for name in ("one", "two", "three")
    ]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    written = lines(tmp_path / "new")
    for name in ("one", "two", "three"):
        mine = [line["arguments"]["n"] for line in written if line["who"] == name]
        assert mine == [str(n) for n in range(200)]


def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        Audit(tmp_path / "file" / "audit.jsonl").write("mcp", "run_start", {}, "ok")
