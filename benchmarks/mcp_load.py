"""How quickly whet-mcp answers fifty calls that read, all at once, while a run trains on the same machine.

    PYTHONPATH=src python -P benchmarks/mcp_load.py --out benchmarks/results/mcp-load.md

The server is whet-mcp over HTTP in a process of its own, its limits as shipped; a run of the demo trains in
its worker, on one thread, for as long as is measured. A round sends fifty calls at the same moment over
connections that are open already, and the rounds stay under the server's limit of calls a minute. The calls
are those that look; what reads rows (dataset_inspect, template_preview) takes as long as its data.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psutil

from whet.engine import api

CALLS_AT_ONCE = 50
ROUNDS = 4
WANTED_MS = 200.0
REVISION = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": REVISION,
    "io.modelcontextprotocol/clientCapabilities": {},
}
PATIENCE = 120.0


def mix(run: str) -> list[tuple[str, dict[str, Any]]]:
    """What an agent and its person ask while they wait."""
    views = ("summary", "metrics", "samples", "logs", "config")
    looks: list[tuple[str, dict[str, Any]]] = [("run_get", {"run_id": run, "view": view}) for view in views]
    return [
        ("job_list", {}),
        ("env_inspect", {}),
        ("model_list", {}),
        ("run_diagnose", {"run_id": run}),
        ("job_wait", {"run_id": run, "until": "step", "timeout_seconds": 0}),
        *looks,
    ]


@contextmanager
def training() -> Iterator[str]:
    """A run of the demo that outlasts what is measured; its id, once it takes steps."""
    settings = [
        "training.max_steps=100000",
        "training.threads=1",
        "training.save_every=500",
        "export.gguf=[]",
    ]
    run = api.start(api.plan(api.recipe("demo", settings)), "benchmark")
    try:
        for event in api.follow(run):
            if isinstance(event, api.StepEvent) and event.step >= 5:
                break
        yield run
    finally:
        api.stop(run, now=True)
        list(api.follow(run))


@contextmanager
def serving(root: Path) -> Iterator[tuple[str, str, psutil.Process]]:
    """whet-mcp over HTTP; its URL, token and process."""
    token = secrets.token_hex(32)
    words = ["--root", str(root), "--http", "127.0.0.1:0", "--token-env", "LOAD_TOKEN"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "whet.mcp_server", *words],
        env={**os.environ, "LOAD_TOKEN": token},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    try:
        url = next(word.rstrip(",") for word in line.split() if word.startswith("http"))
        yield url, token, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


async def ask(http: httpx2.AsyncClient, url: str, tool: str, arguments: dict[str, Any]) -> float:
    """Milliseconds from sending a call to its whole answer. Raises RuntimeError for one that failed."""
    params = {"name": tool, "arguments": arguments, "_meta": META}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    named = {"MCP-Protocol-Version": REVISION, "Mcp-Method": "tools/call", "Mcp-Name": tool}
    began = time.perf_counter()
    said = await http.post(url, json=body, headers=named)
    took = (time.perf_counter() - began) * 1000
    if said.status_code != 200 or '"isError":true' in said.text or '"result"' not in said.text:
        raise RuntimeError(f"{tool}: HTTP {said.status_code}: {said.text[:500]}")
    return took


async def measure(
    url: str, token: str, run: str, server: psutil.Process
) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of each call by tool, and the server's CPU milliseconds a call."""
    calls = mix(run)
    times: dict[str, list[float]] = {tool: [] for tool, _ in calls}
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
    limits = httpx2.Limits(max_connections=CALLS_AT_ONCE, max_keepalive_connections=CALLS_AT_ONCE)

    async def timed(tool: str, arguments: dict[str, Any]) -> None:
        times[tool].append(await ask(http, url, tool, arguments))

    async def one_round() -> None:
        async with anyio.create_task_group() as group:
            for number in range(CALLS_AT_ONCE):
                group.start_soon(timed, *calls[number % len(calls)])

    async with httpx2.AsyncClient(headers=headers, limits=limits, timeout=PATIENCE) as http:
        for tool, arguments in calls:  # the machine is looked at once a minute, and imports happen once
            await ask(http, url, tool, arguments)
        before = server.cpu_times()
        for _ in range(ROUNDS):
            await one_round()
        after = server.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return times, spent * 1000 / (ROUNDS * CALLS_AT_ONCE)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def report(times: dict[str, list[float]], cpu: float, load: tuple[float, float], steps: float) -> str:
    """The table, with what it was measured on."""
    every = [value for values in times.values() for value in values]
    p95 = percentile(every, 0.95)
    packages = ", ".join(f"{name} {version(name)}" for name in ("mcp", "uvicorn", "starlette", "torch"))
    rows = [
        f"| {tool} | {len(values)} | {statistics.median(values):.0f} | {percentile(values, 0.95):.0f} "
        f"| {max(values):.0f} |"
        for tool, values in times.items()
    ]
    verdict = "met" if p95 < WANTED_MS else "missed"
    return "\n".join(
        [
            f"# whet-mcp under load, {datetime.date.today()}",
            "",
            f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, Python "
            f"{platform.python_version()}, {packages}.",
            f"Load average {load[0]:.1f} before, {load[1]:.1f} after, nice {os.nice(0)}. Meanwhile the run "
            f"took {steps:.1f} steps a second, the server {cpu:.1f} ms of CPU a call.",
            f"`python -P benchmarks/mcp_load.py`: {ROUNDS} rounds of {CALLS_AT_ONCE} calls at once, HTTP, "
            f"revision {REVISION}.",
            "",
            "| tool | calls | median, ms | p95, ms | slowest, ms |",
            "|---|---|---|---|---|",
            *rows,
            f"| **all** | {len(every)} | {statistics.median(every):.0f} | **{p95:.0f}** | {max(every):.0f} |",
            "",
            f"Asked: p95 below {WANTED_MS:.0f} ms: {verdict}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WHET_HOME"] = str(Path(folder) / "home")
        os.environ["WHET_OFFLINE"] = "1"
        with training() as run, serving(Path(folder)) as (url, token, server):
            before, first, began = os.getloadavg()[0], api.run(run).state.step, time.monotonic()
            times, cpu = anyio.run(measure, url, token, run, server)
            steps = (api.run(run).state.step - first) / (time.monotonic() - began)
            text = report(times, cpu, (before, os.getloadavg()[0]), steps)
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
