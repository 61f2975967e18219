"""The real program in a real terminal: from first start through the demo to a verdict, over a broken line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.fake_runs import until
from support.terminal import Terminal

from whet.engine import api

LONG = 900
"""Seconds for the demo on a machine that does other work as well."""

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


@pytest.mark.slow  # two minutes: `make slow`; its parts are tried screen by screen
def test_from_first_start_to_a_verdict_over_a_broken_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path))
    with Terminal(tmp_path) as first:
        first.wait_for("No run yet. The demo")
        first.press("x")
        first.wait_for("by tui", LONG)
        (run,) = api.runs()
        assert run.state.started_by == "tui"
        until(lambda: api.find(run.id).read_state().step >= 3, "some steps", LONG)
    assert api.find(run.id).alive(), "the run died with its terminal"
    with Terminal(tmp_path, size=(120, 36)) as second:
        second.wait_for(run.id)
        second.press("Enter")
        second.wait_for("Proof: pass", LONG)
        second.press("Escape")
        second.wait_for("is done: talk to it", 30)
        second.press("c")
        second.wait_for("Say something", 120)
        second.press("Who are you?", "Enter")
        second.wait_for("demo model", 120)
        second.press("Escape")
        second.press("q")
    view = api.run(run.id)
    assert view.status == "finished" and view.verdict == "pass"
