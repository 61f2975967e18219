"""A machine that is the same everywhere, and a folder of files to choose from."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.plan_inputs import machine, write_chats

from whet.engine import api
from whet.engine.goals import proposing
from whet.engine.models import listing
from whet.engine.plan import make_plan
from whet.engine.surroundings import Surroundings
from whet.tui.screens.new_run import asking, data_step


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that is the same everywhere, a home of its own, a folder with two files."""
    folder = tmp_path / "a-folder-for-the-tests-of-new-run" / "chats-and-more"
    folder.mkdir(parents=True)
    write_chats(folder / "chats.jsonl", 200)
    (folder / "notes.txt").write_text("A line to learn.\n" * 40)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("WHET_OFFLINE", "1")
    on = machine()
    monkeypatch.setattr(
        api,
        "plan",
        lambda recipe, overrides=(), progress=None: make_plan(
            recipe, progress=progress, machine=on, surroundings=Surroundings()
        ),
    )
    monkeypatch.setattr(
        api,
        "propose",
        lambda goal, progress=None: proposing.propose(
            goal, progress, machine=on, surroundings=Surroundings()
        ),
    )
    monkeypatch.setattr(api, "models", lambda folders=(): listing.list_models(machine=on))
    for module, name in ((asking, "DEBOUNCE_SECONDS"), (data_step, "PREVIEW_SECONDS")):
        monkeypatch.setattr(module, name, 0.001)
    return folder
