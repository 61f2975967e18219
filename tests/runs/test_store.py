"""The run directories as readers and front ends see them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from support.fake_runs import SOURCE, FakePlan, make_recipe

from whet.engine.errors import WhetError
from whet.engine.plan import Plan
from whet.engine.recipe import Recipe
from whet.engine.runs import locks
from whet.engine.runs.store import RunDir, RunStore

Create = Callable[..., RunDir]


def test_new_run_is_complete_and_private(store: RunStore, create: Create) -> None:
    run = create("my-run")
    assert run.id.startswith("my-run-") and run.path.parent == store.root
    state = run.read_state()
    assert (run.status(), state.attempt, state.started_by, state.model) == ("queued", 0, "test", "demo")
    assert Recipe.model_validate(yaml.safe_load(run.recipe.read_text())) == make_recipe("my-run")
    assert FakePlan.model_validate_json(run.plan.read_text()).recipe == make_recipe("my-run")
    for folder in (store.root, run.path, run.checkpoints, run.export, run.control.directory):
        assert folder.stat().st_mode & 0o777 == 0o700, folder
    for file in (run.recipe, run.plan, run.state):
        assert file.stat().st_mode & 0o777 == 0o600, file


def test_id_comes_from_the_model_when_the_recipe_has_no_name(store: RunStore) -> None:
    recipe = make_recipe().model_copy(update={"name": None})
    recipe = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"name": "hub/Läma 3.2 (1B)"})}
    )
    run = store.create(cast(Plan, FakePlan(recipe=recipe)), "test")
    assert run.id.startswith("L-ma-3.2-1B-")


def test_unwritable_home_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WhetError) as caught:
        RunStore(tmp_path / "file" / "runs").create(cast(Plan, FakePlan(recipe=make_recipe())), "test")
    assert caught.value.code == "run.not_writable" and "WHET_HOME" in caught.value.hint


def test_get_by_id_prefix_and_the_last_five_for_an_unknown_one(store: RunStore, create: Create) -> None:
    with pytest.raises(WhetError, match="No run is called 'x'") as empty:
        store.get("x")
    assert "no runs" in empty.value.hint
    runs = [create(f"run{number}") for number in range(7)]
    for age, run in enumerate(runs):
        run.write_state(created=1000.0 + age)
    assert store.get(runs[3].id) == store.get("run3") == runs[3]
    with pytest.raises(WhetError) as ambiguous:
        store.get("run")
    assert ambiguous.value.code == "run.ambiguous"
    with pytest.raises(WhetError) as unknown:
        store.get("sprint")
    assert unknown.value.code == "run.unknown"
    named = [run.id for run in reversed(runs) if run.id in unknown.value.hint]
    assert named == [run.id for run in reversed(runs[-5:])]


def test_exact_id_wins_over_a_longer_one(store: RunStore, create: Create) -> None:
    run = create()
    os.rename(create().path, store.root / f"{run.id}-copy")
    assert store.get(run.id) == run


def test_list_is_newest_first_and_a_broken_state_hides_no_other_run(store: RunStore, create: Create) -> None:
    old, broken, new = create("old"), create("broken"), create("new")
    old.write_state(created=1.0)
    broken.state.write_text("{half")
    (store.root / ".half-made.new").mkdir()
    summaries = store.list()
    assert [summary.id for summary in summaries if summary.id != broken.id] == [new.id, old.id]
    assert {summary.status for summary in summaries if summary.id == broken.id} == {"unreadable"}
    with pytest.raises(WhetError) as caught:
        broken.read_state()
    assert caught.value.code == "run.unreadable" and str(broken.state) in caught.value.message


def test_two_hundred_runs_are_listed_in_well_under_a_fifth_of_a_second(
    store: RunStore, create: Create
) -> None:
    model = create()
    for number in range(199):
        path = store.root / f"copy-{number}"
        path.mkdir()
        (path / "state.json").write_bytes(model.state.read_bytes())
        RunDir(path).write_state(status="running", launched=1.0)
        (path / "lock").touch()
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        summaries = store.list()
        seconds.append(time.perf_counter() - begin)
    assert len(summaries) == 200
    assert sum(summary.status == "interrupted" for summary in summaries) == 199
    assert min(seconds) < 0.2, seconds


def test_status_follows_the_lock(create: Create) -> None:
    run = create()
    assert run.status() == "queued"  # never launched, so nothing was interrupted
    for active in ("queued", "waiting", "running"):
        run.write_state(status=active, launched=1.0)
        with locks.hold(run.lock):
            assert run.status() == active
        assert run.status() == "interrupted"
    for ended in ("stopped", "failed", "finished"):
        run.write_state(status=ended)
        assert run.status() == ended


def test_state_is_always_whole_beside_a_writer(create: Create) -> None:
    run = create()
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            run.write_state(step=number, summary={"text": "x" * (number * 997 % 20_000)}, loss=float(number))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen: set[int] = set()
        deadline = time.monotonic() + 20
        while len(seen) < 30 and time.monotonic() < deadline:
            state = run.read_state()
            assert state.step == (state.loss or 0)
            seen.add(state.step)
    finally:
        stop.set()
        thread.join()
    assert len(seen) >= 30


def test_not_finite_loss_survives_in_the_state(create: Create) -> None:
    run = create()
    run.write_state(loss=math.nan, summary={"gap": math.inf})
    loss = run.read_state().loss
    assert loss is not None and math.isnan(loss)
    assert run.write_state(step=1).step == 1


def test_refused_write_leaves_the_old_state(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create()

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        run.write_state(step=5)
    assert run.read_state().step == 0
    assert not [path for path in run.path.iterdir() if path.name.endswith(".new")]


def test_listing_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom whet.engine.runs import supervisor, store\nstore.RunStore().list()\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    env = {"PYTHONPATH": str(SOURCE), "WHET_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
