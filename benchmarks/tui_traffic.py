"""What the TUI sends down an SSH session while a run is watched: bytes a second to the terminal.

    PYTHONPATH=src python -P benchmarks/tui_traffic.py --out benchmarks/results/tui-traffic.md

The real program runs in a pseudo-terminal of the size named and shows a run that makes four steps a second
and an evaluation every thirty; bytes are counted from the first whole picture on.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import math
import os
import platform
import pty
import select
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from importlib.metadata import version
from pathlib import Path

from whet.engine import api
from whet.engine.runs import locks
from whet.engine.runs.events import EventLog
from whet.engine.runs.store import RunDir, RunStore

SIZES = ((80, 24), (120, 36), (200, 50))
WANTED = 20_000
"""Bytes a second at 120 by 36."""
STEPS_A_SECOND = 4
PROGRAM = "from whet.tui.cli import main; main()"


def live_run(stop: threading.Event) -> RunDir:
    """A run whose events come as a worker's would, its lock held."""
    run = RunStore().create(api.plan(api.recipe("demo")), "benchmark")
    ready = threading.Event()

    def work() -> None:
        with locks.hold(run.lock):
            run.write_state(
                status="running", launched=time.time(), attempt=1, total_steps=2000, phase="train"
            )
            log = EventLog(run.events, 1)
            for step in range(1, 2001):
                loss = 0.8 * math.exp(-step / 300) + 0.02 * math.sin(step)
                log.append(
                    api.StepEvent(
                        step=step, total_steps=2000, epoch=step / 400, loss=loss, learning_rate=2e-4,
                        grad_norm=0.5, tokens=900, supervised_tokens=500, seconds=0.25, memory_bytes=7 << 30,
                    )
                )  # fmt: skip
                if step % 30 == 0:
                    log.append(
                        api.EvalEvent(step=step, loss=loss, supervised_tokens=500, seconds=1, best=True)
                    )
                run.write_state(step=step, loss=loss)
                if step == 40:
                    ready.set()
                if step > 40 and stop.wait(1 / STEPS_A_SECOND):
                    return

    threading.Thread(target=work, daemon=True).start()
    ready.wait(60)
    return run


def watch(size: tuple[int, int], seconds: float, low: bool) -> float:
    """Bytes a second that the program writes while its Run screen is open."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    environment |= {"WHET_LOW_BANDWIDTH": "1"} if low else {}
    program = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM], stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        drain(ours, 6)
        os.write(ours, b"\r")  # the newest run is under the cursor
        drain(ours, 6)
        return drain(ours, seconds) / seconds
    finally:
        program.kill()
        program.wait()
        os.close(ours)


def drain(fd: int, seconds: float) -> int:
    """Read for so long; how many bytes came."""
    count, deadline = 0, time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([fd], [], [], left)[0]:
            count += len(os.read(fd, 1 << 16))
    return count


def report(rows: list[tuple[tuple[int, int], bool, float]], seconds: float) -> str:
    """What was measured, as Markdown."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("textual", "textual-plot"))
    lines = [
        "# Bytes to the terminal while a run is watched",
        "",
        f"{datetime.date.today()}, {machine}, Python {platform.python_version()}, {versions}.",
        f"`PYTHONPATH=src python -P benchmarks/tui_traffic.py`: {seconds:.0f} s each, "
        f"{STEPS_A_SECOND} steps a second.",
        f"Wanted: below {WANTED // 1000} kB/s at 120×36, redrawn once a second.",
        "",
        "| size | redrawn every | kB/s |",
        "|---|---|---|",
    ]
    lines += [f"| {w}×{h} | {'5 s' if low else '1 s'} | {rate / 1000:.1f} |" for (w, h), low, rate in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure all sizes; 1 when 120×36 sends more than wanted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as home:
        os.environ["WHET_HOME"] = home
        live_run(stop)
        rows = [(size, False, watch(size, options.seconds, low=False)) for size in SIZES]
        rows.append(((120, 36), True, watch((120, 36), options.seconds, low=True)))
        stop.set()
    text = report(rows, options.seconds)
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    return int(next(rate for size, low, rate in rows if size == (120, 36) and not low) > WANTED)


if __name__ == "__main__":
    sys.exit(main())
