"""The first paint is quick, and nothing heavy is imported for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.fake_runs import SOURCE

FIRST_PAINT = 0.4
"""Seconds of processor time until the app is ready: on an idle machine the time a person waits."""
OVER_TEXTUAL = 1.75
"""On a machine too slow for that, so many times what an app without anything takes; seen: 1.4 to 1.7."""

EMPTY = """
import json, time
from textual.app import App

class Empty(App):
    def on_ready(self):
        self.exit(json.dumps({"seconds": time.process_time(), "loaded": []}))

print(Empty().run(headless=True, size=(120, 36)))
"""

PROGRAM = """
import json, sys, time
from whet.tui.app import WhetApp

class Timed(WhetApp):
    def on_ready(self):
        heavy = ("torch", "transformers", "numpy", "pyarrow", "datasets", "pydantic", "mcp")
        loaded = [name for name in heavy if name in sys.modules]
        self.exit(json.dumps({"seconds": time.process_time(), "loaded": loaded}))

print(Timed().run(headless=True, size=(120, 36)))
"""


def start(home: Path, program: str) -> tuple[float, list[str]]:
    """Seconds of processor time until ``program``'s app is ready, and what heavy it loaded."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "WHET_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seen = json.loads(done.stdout.strip().rpartition("\n")[2])
    return seen["seconds"], seen["loaded"]


def test_home_is_painted_at_once_and_without_anything_heavy(tmp_path: Path) -> None:
    start(tmp_path, PROGRAM)  # byte code is written once
    turns = [(start(tmp_path, EMPTY), start(tmp_path, PROGRAM)) for _ in range(4)]
    assert all(loaded == [] for turn in turns for _, loaded in turn)
    assert any(home < max(FIRST_PAINT, OVER_TEXTUAL * empty) for (empty, _), (home, _) in turns), turns
