"""Another user of the machine finds nothing open: whatever the umask, whet's folders are its user's own."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from whet.engine import api, rates
from whet.engine.export.hub import _files as files_to_push
from whet.engine.runs import locks
from whet.engine.runs.events import EventLog, PhaseEvent
from whet.engine.runs.files import private_dir
from whet.engine.runs.store import RunStore
from whet.mcp_server.audit import Audit
from whet.tui import drafts, kept


@pytest.fixture(params=[0o000, 0o022])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before = os.umask(request.param)
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "mine" / "whet"))
    try:
        yield tmp_path / "mine" / "whet"
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def open_to_others(home: Path) -> list[tuple[str, str]]:
    """Folders that are not 0700; files of runs, plans, keys, locks and the audit that are not 0600."""
    folders = [path for path in (home.parent, home, *home.rglob("*")) if path.is_dir()]
    files = [path for place in ("runs", "plans", "keys", "locks") for path in (home / place).rglob("*")]
    held = [*folders, *(path for path in (*files, *home.glob("*.jsonl")) if path.is_file())]
    return [(str(path), oct(mode(path))) for path in held if mode(path) & 0o077]


def test_everything_whet_makes_is_private(home: Path) -> None:
    """A plan fills the caches, front ends keep things, a run is created, asked to stop and written to."""
    plan = api.plan(api.recipe("lora-chat", ["model.name=demo", "data.train=demo"]))
    api.keep_plan(plan)
    drafts.save("mine", "name: mine\n")
    kept.save(kept.Kept())
    rates.record_rate(plan.model, plan.resolved, 100.0)
    Audit(home / "audit.jsonl").write("mcp:test", "run_start", {}, "ok")
    run = RunStore().create(plan, "test")
    log = EventLog(run.events, 1)
    log.append(PhaseEvent(phase="train"))
    log.close()
    run.control.request_stop()
    with locks.hold(locks.gpu_lock("0")):
        pass
    made = {path.name for path in home.iterdir()}
    assert made >= {"cache", "drafts", "locks", "plans", "runs", "audit.jsonl"}
    assert open_to_others(home) == []


def test_parents_are_made_private_too_and_others_are_left(home: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    before = mode(shared)
    made = private_dir(shared / "a" / "b" / "c")
    assert [mode(made), mode(made.parent), mode(made.parent.parent), mode(shared)] == [0o700] * 3 + [before]
    assert private_dir(shared) == shared and mode(shared) == before


def test_what_training_leaves_beside_weights_is_not_pushed(tmp_path: Path) -> None:
    """The trainer's pickled arguments name folders of this machine, and can hold a token."""
    stays = (
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_0.pth",
        "trainer_state.json",
        ".env",
    )
    for name in (*stays, "model.safetensors", "config.json"):
        (tmp_path / name).write_text("{}")
    assert [path.name for path in files_to_push(tmp_path, ())] == ["config.json", "model.safetensors"]


def test_a_bundle_is_its_writers_alone_and_follows_no_link(home: Path, tmp_path: Path) -> None:
    """A name that another user took before, as a link to something of ours, is refused."""
    target, prize = tmp_path / "bundle.tar.gz", tmp_path / "prize"
    prize.write_text("mine")
    target.symlink_to(prize)
    with pytest.raises(api.WhetError) as caught:
        api.bundle(cast(api.DoctorReport, None), target)  # it is not looked at before
    assert caught.value.code == "doctor.bundle_exists" and prize.read_text() == "mine"
