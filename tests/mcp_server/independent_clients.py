"""whet-mcp before clients that others wrote: the MCP inspector and the conformance suite, both on Node.

    python -P tests/mcp_server/independent_clients.py [--full]        (after `make mcp-clients`' npm install)

By default the suite's scenarios that any server must pass, in both revisions, and the inspector's strict
reading of the tools over stdio and HTTP, in both eras. ``--full`` adds calls, resources and prompts by the
inspector, and all that the suite requires, against a server with its fixtures, and counts for
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.counted import write_counts

TESTS = Path(__file__).parents[1]
MODULES = Path(__file__).parent / "node" / "node_modules"
NODE = MODULES / "node" / "bin" / "node"
INSPECTOR = MODULES / ".bin" / "mcp-inspector"
CONFORMANCE = MODULES / ".bin" / "conformance"
ERAS = ("legacy", "modern")
FIXTURE_FREE = {
    "2025-11-25": (
        "server-initialize",
        "server-session-lifecycle",
        "ping",
        "tools-list",
        "resources-list",
        "prompts-list",
        "dns-rebinding-protection",
    ),
    "2026-07-28": (
        "tools-list",
        "resources-list",
        "prompts-list",
        "caching",
        "dns-rebinding-protection",
        "sep-2164-resource-not-found",
        "http-header-validation",
    ),
}
MODERN = "2026-07-28"
NEARLY_FREE = ("server-stateless",)
"""Needs a tool or two of the suite's own to show how a missing capability is answered."""
CALLS = (
    ("tools/call", "--tool-name", "env_inspect"),
    ("tools/call", "--tool-name", "dataset_inspect", "--tool-arg", "data=demo"),
    ("tools/call", "--tool-name", "job_list"),
    ("resources/list",),
    ("resources/templates/list",),
    ("resources/read", "--uri", "whet://guide"),
    ("prompts/list",),
    ("prompts/get", "--prompt-name", "finetune", "--prompt-args", "data=demo"),
)
PATIENCE = 120.0


class Clients:
    """Runs the clients one after the other and remembers what failed."""

    def __init__(self, home: Path) -> None:
        self._environment = {**os.environ, "HOME": str(home), "WHET_HOME": str(home / "whet")}
        self.runs = 0
        self.failed: list[str] = []

    def node(self, title: str, command: Sequence[str | Path]) -> str:
        """Run one client; its stdout. A failure is told with its last words."""
        started = time.monotonic()
        self.runs += 1
        done = subprocess.run(
            [str(NODE), *map(str, command)],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        took = time.monotonic() - started
        print(f"{'FAIL' if done.returncode else 'ok  '} {title} ({took:.1f} s)", flush=True)
        if done.returncode:
            self.failed.append(title)
            print(done.stdout[-4000:], done.stderr[-2000:], sep="\n", flush=True)
        return done.stdout

    @contextmanager
    def server(self, command: Sequence[str], **variables: str) -> Iterator[str]:
        """A server as a process; yields the URL that it names on its first line. Ends it by SIGTERM."""
        environment = {**self._environment, "PYTHONPATH": str(TESTS), **variables}
        process = subprocess.Popen(
            [sys.executable, "-P", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield next((word.rstrip(",") for word in line.split() if word.startswith("http://")), line)
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)


def conformance(clients: Clients, results: Path, full: bool) -> None:
    """The suite, against whet's server as it is, and in full against the one with fixtures."""
    serve = ["-m", "mcp_server.conformance_server"]
    with clients.server(serve) as url:
        for revision, scenarios in FIXTURE_FREE.items():
            for scenario in scenarios:
                words = ["server", "--url", url, "--scenario", scenario, "--spec-version", revision]
                clients.node(f"conformance {revision} {scenario}", [CONFORMANCE, *words, "-o", results])
    with clients.server([*serve, "--fixtures"]) as url:
        for scenario in () if full else NEARLY_FREE:
            words = ["server", "--url", url, "--scenario", scenario, "--spec-version", MODERN]
            clients.node(f"conformance {MODERN} {scenario}", [CONFORMANCE, *words, "-o", results])
        for revision in FIXTURE_FREE if full else ():
            words = ["server", "--url", url, "--requirements", revision, "-o", str(results)]
            out = clients.node(f"conformance {revision}, all it requires", [CONFORMANCE, *words])
            print(
                *(f"     {line}" for line in out.splitlines() if line.startswith(("Total:", "Not scored"))),
                sep="\n",
            )


def inspector(clients: Clients, root: Path, full: bool) -> None:
    """The inspector, over stdio and over HTTP with the token, in both eras."""
    whet = ["-m", "whet.mcp_server", "--root", str(root)]
    over_stdio = [sys.executable, "-P", *whet]
    token = secrets.token_hex(32)
    with clients.server([*whet, "--http", "127.0.0.1:0", "--token-env", "TOKEN"], TOKEN=token) as url:
        over_http = [url, "--header", f"Authorization: Bearer {token}"]
        for era in ERAS:
            for name, target in (("stdio", over_stdio), ("HTTP", over_http)):
                _inspect(clients, f"{era} {name}", era, target, full)


def _inspect(clients: Clients, where: str, era: str, target: Sequence[str], full: bool) -> None:
    base: list[str | Path] = [INSPECTOR, "--cli", *target, "--protocol-era", era]
    words = ["--method", "tools/list", "--strict", "--format", "json"]
    out = clients.node(f"inspector {where} tools/list --strict", [*base, *words])
    if out and "env_inspect" not in out:
        clients.failed.append(f"inspector {where}: no env_inspect in tools/list")
    for method, *rest in CALLS if full else ():
        title = f"inspector {where} {' '.join([method, *rest])}"
        answer = clients.node(title, [*base, "--method", method, *rest, "--format", "json"])
        if method == "tools/call" and answer and json.loads(answer)["result"].get("isError"):
            clients.failed.append(title)
            print(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--full", action="store_true")
    full, began = parser.parse_args().full, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        home, root = Path(folder) / "home", Path(folder) / "root"
        home.mkdir()
        root.mkdir()
        clients = Clients(home)
        conformance(clients, Path(folder) / "results", full)
        inspector(clients, root, full)
    if full:
        counts = {"runs of clients that others wrote": clients.runs, "failed": len(clients.failed)}
        write_counts("clients", "make mcp-clients", counts, time.monotonic() - began)
    if clients.failed:
        sys.exit("\n".join(["", f"{len(clients.failed)} failed:", *clients.failed]))
    print("Independent clients: all passed.")


if __name__ == "__main__":
    main()
