"""Calls of the MCP server's tools, and words of the command line."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import anyio
from fuzz import mutate
from fuzz.case import Case, Fault, Room, Target
from fuzz.targets import runs
from mcp import Client
from mcp.types import CallToolRequestParams, TextContent

from whet.engine import api
from whet.engine.remote.address import parse_address
from whet.mcp_server.options import TOOLSETS, Options
from whet.mcp_server.server import Server
from whet.tui.cli import VERBS, main

LONGEST_RESULT = 20_000
"""Characters of a tool's answer."""
ROWS = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n' * 3
RECIPE = b"model: {name: demo}\ndata: {train: demo, max_rows: 8}\ntraining: {max_steps: 1}\n"
KNOWN = (
    "rows.jsonl",
    "rows.jsonl",
    "recipe.yaml",
    "model",
    "model.gguf",
    "nosuch",
    runs.RUN,
    runs.RUN[:6],
    "last",
)
STARTS = ("model_chat", "eval_run", "export_start", "gguf_smoke_test", "run_resume")
"""Tools that start a process on a run or a model that is there; they are given none here."""


@cache
def _tools() -> dict[str, dict[str, Any]]:
    """Names and input schemas."""

    async def ask() -> dict[str, dict[str, Any]]:
        server = Server(Options(root=Path("/nonexistent"), toolsets=frozenset(TOOLSETS)))
        async with Client(server) as client:
            return {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}

    return anyio.run(ask)


def argument(rng: Random, schema: dict[str, Any]) -> Any:
    """A value that a schema describes, or one that it does not."""
    if rng.random() < 0.25:
        return mutate.odd_value(rng)
    if "anyOf" in schema:
        return argument(rng, rng.choice(schema["anyOf"]))
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return rng.choice((schema.get("minimum", 0), schema.get("maximum", 10), rng.choice(mutate.NUMBERS)))
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "array":
        return [argument(rng, schema.get("items", {})) for _ in range(rng.randint(0, 3))]
    if kind == "object":
        key = rng.choice(("training.max_steps", "format", "model.name", "text", *mutate.TEXTS[:30]))
        return {key: rng.choice((1, "text", "question", mutate.odd_value(rng)))}
    return rng.choice((*KNOWN, *KNOWN, rng.choice(mutate.TEXTS), mutate.text(rng, rng.choice(KNOWN))))


def _files() -> dict[str, bytes]:
    whole = {f"runs/{runs.RUN}/{name}": content for name, content in runs.whole().items()}
    return {"root/rows.jsonl": ROWS, "root/recipe.yaml": RECIPE, "root/model.gguf": b"GGUF", **whole}


def make_call(rng: Random) -> Case:
    name = rng.choice(list(_tools()))
    if name == "env_inspect" and rng.random() < 0.98:
        name = "run_get"  # looking at the machine takes seconds
    properties = _tools()[name].get("properties", {})
    required = set(_tools()[name].get("required", ()))
    taken = [one for one in properties if one in required or rng.random() < 0.4]
    arguments = {one: argument(rng, properties[one]) for one in taken if rng.random() > 0.03}
    if rng.random() < 0.05:
        arguments[mutate.text(rng, "argument")] = 1
    if name in STARTS:
        arguments = {key: value for key, value in arguments.items() if value not in KNOWN}
    if rng.random() < 0.02:
        name = mutate.text(rng, name)
    return Case(_files(), {"tool": name, "arguments": arguments})


async def _answer(server: Server, name: str, arguments: dict[str, Any]) -> Any:
    """Through the SDK's client; what that cannot send, another client may."""
    try:
        CallToolRequestParams(name=name, arguments=arguments).model_dump_json()
    except (ValueError, RecursionError):
        return await server.call_tool(name, arguments)
    async with Client(server) as client:
        return await client.call_tool(name, arguments)


def run_call(case: Case, room: Room) -> None:
    """The answer is structured, or an error with its code; nothing is unforeseen."""
    (room.files / "runs").rename(room.home / "runs")
    root = room.out / "root"
    (room.files / "root").rename(root)
    server = Server(Options(root=root, toolsets=frozenset(TOOLSETS)))

    result = anyio.run(_answer, server, case.call["tool"], case.call["arguments"])
    (content,) = result.content
    assert isinstance(content, TextContent)
    text = content.text
    if "[internal]" in text or (result.is_error and not text.startswith("[")):
        raise Fault(f"{case.call['tool']}: {text[:300]}")
    if len(text) > LONGEST_RESULT or api.printable(text) != text:
        raise Fault(f"{case.call['tool']}: {len(text)} characters, {text[:200]!a}")
    if result.is_error:
        raise api.WhetError(text[1:].partition("]")[0], text[:1000])


WORDS = {
    "plan": ["recipe.yaml"],
    "train": ["nosuch.yaml"],
    "fix": ["recipe.yaml"],
    "data": ["rows.jsonl"],
    "template": ["demo", "rows.jsonl"],
    "suggest": ["rows.jsonl"],
    "show": [runs.RUN],
    "explain": ["D01"],
    "stop": [runs.RUN],
    "rewards": ["recipe.yaml", "rows.jsonl"],
}
FLAGS = (
    "--json",
    "-h",
    "--log",
    "5",
    "--copy",
    "--to",
    "--list",
    "--rows",
    "-1",
    "--method",
    "--nosuch",
    "-o",
    "x",
)
KEYS = ("training.max_steps", "data.format", "model.name", "x")
LEFT = ("demo", "chat", "eval", "export", "smoke", "push", "resume", "doctor", "attach")
"""Verbs that would start a worker, or look at the machine for seconds: given words that lead nowhere."""


def make_words(rng: Random) -> Case:
    verb = rng.choice(list(VERBS))
    words = list(WORDS.get(verb, []))
    words += rng.choices(FLAGS, k=rng.choice((0, 1, 2)))
    if rng.random() < 0.4:
        words.append(f"{rng.choice(KEYS)}={rng.choice(mutate.TEXTS)}")
    if words and rng.random() < 0.5:
        at = rng.randrange(len(words))
        words[at] = mutate.text(rng, words[at])
    if verb in LEFT:
        words = ["nosuch-run", *words] if rng.random() < 0.8 else ["--nosuch"]
    if rng.random() < 0.05:
        verb = mutate.text(rng, verb)
    # Where an output goes is the caller's word: kept to names in the working folder.
    words = [word.replace("/", "_").replace("~", "_").replace("\0", "")[:5000] for word in words]
    return Case(_files(), {"words": [verb.replace("\0", ""), *words]})


def run_words(case: Case, room: Room) -> None:
    """Ends by SystemExit with a known code; what it prints is printable and no traceback."""
    (room.files / "runs").rename(room.home / "runs")
    os.chdir(room.out)
    for path in (room.files / "root").iterdir():
        path.rename(room.out / path.name)
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(case.call["words"])
        except SystemExit as end:
            code = end.code
    said = out.getvalue() + err.getvalue()
    if code not in (None, 0, 1, 2, 3, 4, 5):
        raise Fault(f"exit code {code!r}")
    if "Traceback" in said.replace("Traceback: x", "") or api.printable(said) != said:
        raise Fault(f"prints {said[-300:]!a}")
    if code in (1, 2) and not said.strip():
        raise Fault("fails without a word")
    if code:
        raise api.WhetError(f"exit.{code}", said[-500:] or "nothing said")


ADDRESSES = (
    "ssh://host/run-1",
    "ssh://me@host:2222/run?home=~/w&whet=/opt/whet",
    "ssh://[fe80::1%25eth0]:22/last",
    "ssh://-oProxyCommand=id/run",
    "ssh://host/run?whet=a;id",
    "ssh://a@b@c:1/x?home=$(id)",
)


def make_address(rng: Random) -> Case:
    return Case(call={"address": mutate.text(rng, rng.choice(ADDRESSES), most=3)})


def run_address(case: Case, room: Room) -> None:
    """What is taken stays one host and one quoted command, whatever stands in it."""
    place = parse_address(case.call["address"])
    words = place.command("attach", place.run, "--json")
    called = place.ssh(words, batch=True)
    if shlex.split(called[-1]) != words or called[-3] != "--" or called[-2] != place.host:
        raise Fault(f"calls {called!r}")
    if place.host.startswith("-") or place.run.startswith("-") or api.printable(called[-1]) != called[-1]:
        raise Fault(f"takes {called!r}")


TARGETS = (
    Target("mcp-calls", make_call, run_call, share=3, in_ci=8),
    Target("command-lines", make_words, run_words, share=4, in_ci=16),
    Target("addresses", make_address, run_address, share=8, in_ci=60),
)
