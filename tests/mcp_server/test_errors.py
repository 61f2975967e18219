"""What agents read of failures: hints for people at a shell become calls of tools that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from whet import engine, mcp_server
from whet.engine.api import WhetError
from whet.mcp_server.errors import NEXT, words
from whet.mcp_server.options import TOOLSETS, Options
from whet.mcp_server.server import Server
from whet.tui.cli import VERBS

PYTHON = ("save_pretrained", "from_pretrained", "get_peft_model", "push_to_hub", "train_on", "get_chat")
"""How functions begin that hints of the Python API name; no tool raises those."""


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


def raised() -> list[tuple[str, str, bool]]:
    """Code, hint and whether a hint is given, of every error that is written down in whet."""
    found = []
    folders = [Path(str(package.__file__)).parent for package in (engine, mcp_server)]
    for file in (file for folder in folders for file in sorted(folder.rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            if "WhetError" in (getattr(node.func, "id", ""), getattr(node.func, "attr", "")):
                hint = "".join(_texts(node.args[2])) if len(node.args) > 2 else ""
                found.append((str(node.args[0].value), hint, len(node.args) > 2))
    return found


def test_every_error_says_what_comes_next_and_names_only_tools_there_are(tmp_path: Path) -> None:
    every = raised()
    tools = set(Server(Options(root=tmp_path, toolsets=frozenset(TOOLSETS)))._tools)
    assert len(every) > 200
    for code, hint, given in every:
        said = words(WhetError(code, "Fact.", hint))
        assert said.startswith(f"[{code}] Fact.")
        assert given or "Next: " in said, f"{code} has neither a hint nor an entry in NEXT"
        named = set(re.findall(r"\b([a-z]+(?:_[a-z]+)+)\((?=\w+=|\.\.\.|\))", said))
        assert {name for name in named if not name.startswith(PYTHON)} <= tools, (code, said)
    assert {call.partition("(")[0] for call in NEXT.values() if call[0] != "w" and " " not in call} <= tools
