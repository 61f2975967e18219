"""One key, one run: from many processes at once, and after a death at any moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from support.fake_runs import FakePlan, make_recipe

from whet.engine.errors import WhetError
from whet.engine.plan import Plan
from whet.engine.runs import supervisor
from whet.engine.runs.keys import start_once
from whet.engine.runs.store import RunDir, RunStore, new_id

PLAN = cast(Plan, FakePlan(recipe=make_recipe()))
STARTER = """
import os, sys
from typing import cast
from support.fake_runs import FakePlan, make_recipe
from whet.engine.runs import supervisor
from whet.engine.runs.keys import start_once
from whet.engine.runs.store import RunStore, new_id

plan = FakePlan(recipe=make_recipe())
moment, script = sys.argv[1:]

def create(run_id):
    if moment == "before": os._exit(9)
    run = RunStore().create(plan, "test", run_id)
    if moment == "between": os._exit(9)
    return run

def launch(run):
    supervisor.launch(run, worker=[script])
    if moment == "after": os._exit(9)

print(start_once("a key", "plan 1", new_id(plan), create, launch).id)
"""


def start(script: tuple[str], key: str | None = "a key", request: str = "plan 1") -> RunDir:
    def create(run_id: str) -> RunDir:
        return RunStore().create(PLAN, "test", run_id)

    def launch(run: RunDir) -> int:
        return supervisor.launch(run, worker=script)

    return start_once(key, request, new_id(PLAN), create, launch)


def starter(moment: str, script: tuple[str]) -> subprocess.Popen[str]:
    paths = os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parents[1])])
    return subprocess.Popen(
        [sys.executable, "-P", "-c", STARTER, moment, *script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )


def test_many_processes_at_once_start_one_run(store: RunStore, job_script: Any) -> None:
    script = job_script("step(context, 1)")
    processes = [starter("never", script) for _ in range(4)]
    ids = {process.communicate()[0].strip() for process in processes}
    assert len(ids) == 1 and [run.id for run in store] == list(ids)
    run = store.get(ids.pop())
    assert supervisor.wait(run, 30) == "finished"
    assert start(script) == run  # a finished run is not started again
    assert run.read_state().attempt == 1


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_death_on_the_way_is_made_good_under_the_same_key(
    store: RunStore, job_script: Any, moment: str
) -> None:
    script = job_script("step(context, 1)")
    dying = starter(moment, script)
    dying.communicate()
    assert dying.returncode == 9
    run = start(script)
    assert supervisor.wait(run, 30) == "finished" and list(store) == [run]
    assert run.read_state().attempt == 1


def test_half_a_directory_is_no_obstacle(store: RunStore, job_script: Any) -> None:
    def die(run_id: str) -> RunDir:
        (store.root / f".{run_id}.new" / "control").mkdir(parents=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_once("a key", "plan 1", new_id(PLAN), die)
    run = start(job_script("step(context, 1)"))
    assert supervisor.wait(run, 30) == "finished"


def test_key_for_something_else_is_refused_and_names_its_run(store: RunStore, job_script: Any) -> None:
    script = job_script("step(context, 1)")
    run = start(script)
    with pytest.raises(WhetError, match=run.id) as reused:
        start(script, request="plan 2")
    assert reused.value.code == "run.key_reused"
    for key in ("", "k" * 201):
        with pytest.raises(WhetError) as bad:
            start(script, key=key)
        assert bad.value.code == "run.key"
    assert start(script, key=None) != start(script, key="k" * 200) != run
    for each in store:
        supervisor.wait(each, 30)
