"""An action in the four ways it can be done elsewhere: what `y` copies."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

IMPORT = "from whet.engine import api\n"
STARTED = '\nrun_start(plan_id="ID", idempotency_key={key})  # ID: of the first answer'


@dataclass(frozen=True)
class Action:
    """One thing a person could do on this screen."""

    label: str
    cli: str = ""
    """A shell command."""
    yaml: str = ""
    """A recipe, or a part of one."""
    python: str = ""
    """Of the façade ``api``, whose import is put before it."""
    mcp: str = ""
    """A call of whet-mcp's tools."""

    def forms(self) -> dict[str, str]:
        """Name of each form there is, and its text."""
        python = f"{IMPORT}{self.python}" if self.python else ""
        every = {"CLI": self.cli, "YAML": self.yaml, "Python": python, "MCP": self.mcp}
        return {name: text for name, text in every.items() if text}


def mcp_call(tool: str, **arguments: Any) -> str:
    """A tool call as agents write it: ``run_get(run_id="a1")``."""
    words = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
    return f"{tool}({', '.join(words)})"


def mcp_start(key: str, **arguments: Any) -> str:
    """A plan and its start: two calls, a line each; the same ``key`` never starts twice."""
    return mcp_call("plan_create", **arguments) + STARTED.format(key=json.dumps(key, ensure_ascii=False))


TARGETS = ("merged_4bit", "fp8", "adapter_gguf")
"""What an export can write beside GGUF models and merged 16-bit weights."""


def export_action(run_id: str, types: list[str], merged: bool) -> Action:
    """An export of a run, with its proofs."""
    ggufs, targets = [name for name in types if name not in TARGETS], [one for one in types if one in TARGETS]
    flags = "".join(f" --gguf {name}" for name in ggufs) + (" --merged" if merged else "")
    flags += "".join(f" --{name.replace('_', '-')}" for name in targets)
    asked = "".join(f"  {name}: true\n" for name in targets)
    return Action(
        "export",
        f"whet export {run_id}{flags}",
        f"export:\n  gguf: [{', '.join(ggufs)}]\n  merged: {str(merged).lower()}\n{asked}",
        f"api.start_export({run_id!r}, {types!r}, merged={merged}, started_by='python')",
        mcp_call("export_start", run_id=run_id, types=types, merged=merged),
    )


def chat_action(target: str, question: str) -> Action:
    """A question to a run, a model folder or a GGUF file; every voice answers."""
    lines = (
        f"with api.ChatSession(api.chat_target({target!r})) as chat:",
        "    for who in chat.target.voices:",
        f"        pieces = chat.ask([{{'role': 'user', 'content': {question!r}}}], who)",
        "        print(who, ''.join(piece.text for piece in pieces))",
    )
    return Action(
        "talk to it",
        f"whet chat {shlex.quote(target)} --prompt {shlex.quote(question)}",
        python="\n".join(lines),
        mcp=mcp_call("model_chat", target=target, prompt=question),
    )
