"""The operator's door: what may be said, what is refused, and that stdout carries the protocol alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from support.fake_runs import SOURCE

from whet.mcp_server import cli as door
from whet.mcp_server.configurations import CLIENTS, called, started
from whet.mcp_server.options import Options
from whet.mcp_server.self_test import letters
from whet.mcp_server.tools.toolsets import toolsets

HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "llama_cpp"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DOCUMENT = Path(__file__).parents[2] / "docs" / "mcp.md"

NOISY = """
import os, subprocess, sys
from pathlib import Path
from whet.mcp_server.options import Options
from whet.mcp_server.server import Server

server = Server(Options(root=Path(sys.argv[1])))

@server.resource("test://noise")
def noise() -> str:
    print("from Python", flush=True)
    os.write(1, b"from C\\n")
    subprocess.run(["echo", "from a child"], check=True)
    return "quiet"

server.run("stdio")
"""


def whet_mcp(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a call in this process."""
    with pytest.raises(SystemExit) as end:
        door.main(words)
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["--toolsets", "inspct,plan"], "Did you mean 'inspect'?"),
        (["--toolsets", ","], "names none of inspect"),
        (["--root", "no-such-folder"], "no-such-folder"),
        (["--http", "127.0.0.1:0"], "--token-env"),
        (["--token-env", "TOKEN"], "belong to --http"),
        (["--http", "127.0.0.1:0", "--token-env", "T", "--self-test"], "leave --http out"),
        (["--http", "127.0.0.1", "--token-env", "WHET_TEST_TOKEN"], "is not HOST:PORT"),
        (["--http", "0.0.0.0:8765", "--token-env", "WHET_TEST_TOKEN"], "--allow-host"),
        (["--http", "[::]:8765", "--token-env", "WHET_TEST_TOKEN"], "--allow-host"),
        (["--http", "127.0.0.1:0", "--token-env", "WHET_TEST_UNSET"], "holds 0 characters"),
        (["--print-config", "emacs"], "claude-code"),
        (["--no-such-option"], "no-such-option"),
    ],
)
def test_wrong_usage_is_told_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], fact: str
) -> None:
    monkeypatch.setenv("WHET_TEST_TOKEN", "x" * 32)
    code, out, err = whet_mcp(capsys, *words)
    assert code == 2 and out == "" and fact in err


@pytest.mark.parametrize("token", ["", "short", "fifteen-letters", "ä" * 20])
def test_a_weak_token_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("WHET_TEST_TOKEN", token)
    code, _, err = whet_mcp(capsys, "--http", "127.0.0.1:0", "--token-env", "WHET_TEST_TOKEN")
    assert code == 2 and "WHET_TEST_TOKEN" in err and (not token or token not in err)


@pytest.mark.parametrize("until", ["soon", "2030-01-01T00:00:00", "2020-01-01T00:00:00Z"])
def test_an_end_of_the_token_that_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, until: str
) -> None:
    monkeypatch.setenv("WHET_TEST_TOKEN", "x" * 32)
    monkeypatch.setenv("WHET_TEST_TOKEN_EXPIRES", until)
    code, _, err = whet_mcp(capsys, "--http", "127.0.0.1:0", "--token-env", "WHET_TEST_TOKEN")
    assert code == 2 and "WHET_TEST_TOKEN_EXPIRES" in err


@pytest.mark.parametrize("entry", ["owner/name", "owner/name@main", f"name@{COMMIT}", f"a/b@{COMMIT[:-1]}"])
def test_remote_code_must_be_pinned(capsys: pytest.CaptureFixture[str], tmp_path: Path, entry: str) -> None:
    listed = tmp_path / "code.txt"
    listed.write_text(f"# read on Monday\nowner/good@{COMMIT}  # fine\n\n{entry}\n")
    code, _, err = whet_mcp(capsys, "--allow-remote-code", str(listed), "--print-config", "generic")
    assert code == 2 and "line 4" in err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = whet_mcp(capsys, "--version")
    assert code == 0 and re.search(r"whet-mcp, version \d", out)


def test_the_configuration_starts_the_server_with_the_same_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    listed = tmp_path / "code.txt"
    listed.write_text(f"owner/good@{COMMIT}\n")
    words = ["--root", str(tmp_path), "--read-only", "--toolsets", "hub,inspect", "--allow-push"]
    code, out, err = whet_mcp(
        capsys, *words, "--allow-remote-code", str(listed), "--print-config", "claude-code"
    )
    assert code == 0 and ".mcp.json" in err
    server = json.loads(out)["mcpServers"]["whet"]
    assert server["command"] == sys.executable
    assert server["args"] == [
        *("-P", "-m", "whet.mcp_server", "--root", str(tmp_path), "--read-only"),
        *("--toolsets", "inspect,hub", "--allow-remote-code", str(listed), "--allow-push"),
    ]


def parsed(client: str, text: str) -> dict[str, Any]:
    """The entry for whet in a configuration, whatever its form."""
    if client == "codex":
        return tomllib.loads(text)["mcp_servers"]["whet"]  # type: ignore[no-any-return]
    whole = json.loads(text)
    return whole["servers" if client == "vscode" else "mcpServers"]["whet"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("client", CLIENTS)
def test_every_configuration_can_be_read(client: str) -> None:
    awkward = ['/opt/a "quoted" folder/whet-mcp', "--root", "C:\\rows\ttab\x7f ä"]
    entry = parsed(client, started(client, awkward))
    assert [entry["command"], *entry["args"]] == awkward
    remote = parsed(client, called(client, "http://127.0.0.1:8765/mcp", "WHET_TOKEN"))
    assert remote["url"] == "http://127.0.0.1:8765/mcp"
    assert (
        remote.get("bearer_token_env_var") == "WHET_TOKEN" or "Bearer " in remote["headers"]["Authorization"]
    )


@pytest.mark.parametrize("client", CLIENTS)
def test_the_document_shows_the_configurations_as_they_are(client: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    command = ["/path/to/whet/.venv/bin/whet-mcp", "--root", "/path/to/project"]
    for shown in (started(client, command), called(client, "http://127.0.0.1:8765/mcp", "WHET_TOKEN")):
        assert shown in text, f"docs/mcp.md lacks, for {client}:\n{shown}"


def test_the_document_lists_every_tool_with_its_set_and_what_it_may_do(tmp_path: Path) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([RWDO]+) \|", DOCUMENT.read_text(encoding="utf-8"), re.M)
    offered = {
        (name, toolset.name, letters(hints))
        for toolset in toolsets(Options(root=tmp_path))
        for name, hints in toolset.tools.items()
    }
    assert len(rows) == 18 and set(rows) == offered


def test_the_start_is_quick_and_loads_nothing_heavy(tmp_path: Path) -> None:
    """In 1.5 s of processor time; on a machine too slow for that, in 1.8 times what the SDK itself takes."""
    told = "print(time.process_time(), *{name.partition('.')[0] for name in sys.modules})"
    sdk = f"import sys, time, mcp.server; {told}"
    server = (
        "import pathlib, sys, time; from whet.mcp_server.options import Options; "
        "from whet.mcp_server.server import Server; import whet.mcp_server.cli, whet.mcp_server.http; "
        f"Server(Options(root=pathlib.Path({str(tmp_path)!r}))); {told}"
    )
    turns = []
    for _ in range(3):
        times = []
        for code in (sdk, server):
            command = [sys.executable, "-P", "-c", code]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, *loaded = done.stdout.split()
            times.append(float(seconds))
            assert not set(loaded) & HEAVY
        turns.append(times)
    assert any(whole < max(1.5, 1.8 * library) for library, whole in turns), turns


@pytest.mark.parametrize("era", ["legacy", "auto"])
def test_nothing_but_the_protocol_reaches_stdout(tmp_path: Path, era: str) -> None:
    script = tmp_path / "noisy.py"
    script.write_text(NOISY)
    environment = {"WHET_HOME": str(tmp_path / "home"), "PYTHONPATH": str(SOURCE)}
    server = StdioServerParameters(
        command=sys.executable, args=["-P", str(script), str(tmp_path)], env=environment
    )
    heard = tmp_path / "heard"

    async def ask() -> str:
        with heard.open("w") as err:
            async with Client(stdio_client(server, errlog=err), mode=era, read_timeout_seconds=30) as client:
                (content,) = (await client.read_resource("test://noise")).contents
                return content.text  # type: ignore[union-attr]

    assert anyio.run(ask) == "quiet"
    assert heard.read_text().split("\n")[:3] == ["from Python", "from C", "from a child"]


def test_the_self_test_prints_what_a_client_sees(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "whet.mcp_server",
            "--root",
            str(tmp_path),
            "--self-test",
            "--read-only",
        ],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(SOURCE),
            "WHET_HOME": str(tmp_path / "home"),
            "WHET_OFFLINE": "1",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("protocol")] == [
        "2025-11-25:",
        "2026-07-28:",
    ]
    assert any(re.match(r"  R +env_inspect +[\d,]+ bytes", line) for line in lines)
    assert not any(re.match(r"  [WD]O? ", line) for line in lines)
    assert sum("whet://guide" in line for line in lines) == 2 and lines[-1] == "self-test: pass"


def test_the_readme_shows_configurations_that_can_be_read() -> None:
    text = (DOCUMENT.parents[1] / "README.md").read_text(encoding="utf-8")
    section = text.partition("## From a coding agent")[2].partition("\n## ")[0]
    blocks = re.findall(r"```(\w+)\n(.*?)```", section, re.S)
    read = [tomllib.loads(block) if form == "toml" else json.loads(block) for form, block in blocks]
    entries = [next(iter(whole.values()))["whet"] for whole in read]
    assert [next(iter(whole)) for whole in read] == ["mcpServers", "mcp_servers", "servers"]
    assert {entry["command"] for entry in entries} == {"/path/to/whet/.venv/bin/whet-mcp"}
