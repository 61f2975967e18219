"""What agents read of failures: hints for people at a shell become calls of tools that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from whet import engine
from whet.engine.api import WhetError
from whet.mcp_server.errors import words
from whet.tui.cli import VERBS


@pytest.mark.parametrize(
    ("hint", "call"),
    [
        ("Wait for it (`whet attach r-1`).", 'Wait for it (job_wait(run_id="r-1")).'),
        ("go on with it: whet resume r-1", 'go on with it: run_resume(run_id="r-1")'),
        ("whet data /x/rows.jsonl", 'dataset_inspect(data="/x/rows.jsonl")'),
        ("whet data rows.jsonl.", 'dataset_inspect(data="rows.jsonl").'),
        ("`whet explain E08` says more.", "whet://findings/E08 says more."),
        ("whet template demo rows.jsonl", 'template_preview(model="demo", data="rows.jsonl")'),
        ("`whet schema` prints it.", "whet://recipe-schema prints it."),
        ("leave them out with data.bad_rows=skip.", 'leave them out with changes={"data.bad_rows": "skip"}.'),
        (
            "Most probably: data.format=alpaca data.columns.output=b",
            'Most probably: changes={"data.format": "alpaca", "data.columns.output": "b"}',
        ),
        ("by name: accept='[D16, D01]'", 'by name: changes={"accept": ["D16", "D01"]}'),
        ("Set training.max_steps=30, or less.", 'Set changes={"training.max_steps": 30}, or less.'),
    ],
)
def test_a_hint_for_the_shell_becomes_a_call(hint: str, call: str) -> None:
    assert words(WhetError("a.b", "Fact.", hint)) == f"[a.b] Fact. Next: {call}"


def hints() -> dict[str, str]:
    """The hint of every error that the engine raises, an ``x`` where a value goes; place to text."""
    found = {}
    for file in sorted(Path(engine.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "WhetError"
            if isinstance(node, ast.Call) and named and len(node.args) == 3:
                found[f"{file.name}:{node.lineno}"] = "".join(_texts(node.args[2]))
    return found


def _texts(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.FormattedValue):
        return ["x"]
    return [text for inner in ast.iter_child_nodes(node) for text in _texts(inner)]


def test_no_hint_of_the_engine_sends_an_agent_to_the_shell() -> None:
    every = hints()
    command = re.compile(rf"\bwhet (?:{'|'.join(VERBS)})\b")
    shell = {place: hint for place, hint in every.items() if command.search(hint)}
    left = {place: words(WhetError("a.b", "", hint)) for place, hint in shell.items()}
    assert len(shell) >= 15
    assert {place: text for place, text in left.items() if command.search(text)} == {}
