"""Plans by their id, from one process to the next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from whet.engine import api, plan_store
from whet.engine.errors import WhetError
from whet.engine.plan import Plan


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    return api.plan(api.recipe("demo"))


def renamed(plan: Plan, number: int) -> Plan:
    return plan.model_copy(update={"id": f"{number:04d}abcdefabcdef"})


def test_kept_plan_comes_back_whole_by_id_and_by_its_beginning(demo: Plan, tmp_path: Path) -> None:
    assert api.keep_plan(demo) == demo.id
    assert api.kept_plan(demo.id) == api.kept_plan(demo.id[:6]) == demo
    assert (tmp_path / "home" / "plans" / f"{demo.id}.json").stat().st_mode & 0o777 == 0o600


def test_unknown_plan_names_the_last_five(demo: Plan) -> None:
    with pytest.raises(WhetError) as empty:
        api.kept_plan("feed")
    assert empty.value.code == "plan.unknown" and "No plan is kept" in empty.value.hint
    for number in range(7):
        path = plan_store._folder() / f"{api.keep_plan(renamed(demo, number))}.json"
        os.utime(path, (number, number))
    for wanted in ("feed", "", "../../etc/passwd"):
        with pytest.raises(WhetError) as unknown:
            api.kept_plan(wanted)
        assert unknown.value.code == "plan.unknown"
        named = [number for number in range(7) if renamed(demo, number).id in unknown.value.hint]
        assert named == [2, 3, 4, 5, 6]
    with pytest.raises(WhetError) as ambiguous:
        api.kept_plan("000")
    assert ambiguous.value.code == "plan.ambiguous"


def test_the_newest_are_kept_and_the_same_plan_again_is_the_newest(
    demo: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_store, "KEPT", 3)
    for number in range(3):
        api.keep_plan(renamed(demo, number))
        os.utime(plan_store._folder() / f"{renamed(demo, number).id}.json", (number, number))
    api.keep_plan(renamed(demo, 0))
    api.keep_plan(renamed(demo, 3))
    left = sorted(path.stem[:4] for path in plan_store._folder().glob("*.json"))
    assert left == ["0000", "0002", "0003"]


def test_plan_of_another_version_is_one_clear_error(demo: Plan) -> None:
    path = plan_store._folder() / f"{api.keep_plan(demo)}.json"
    path.write_text('{"id": "x"}')
    with pytest.raises(WhetError) as caught:
        api.kept_plan(demo.id)
    assert caught.value.code == "plan.unreadable"
