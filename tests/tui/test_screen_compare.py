"""Compare: what sets runs apart, worked out without a terminal, and the screen at three sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from rich.console import Console
from support.recorded_runs import answers, held_out, record, recorded_run, step
from support.screens import SIZES, pressed, same_as_committed, settle, shown
from textual.pilot import Pilot

from whet.engine import api
from whet.engine.runs.events import Event
from whet.engine.runs.store import RunDir
from whet.tui.app import WhetApp
from whet.tui.screens.cards import ErrorCard
from whet.tui.screens.compare import CompareScreen, screen
from whet.tui.screens.compare.compared import METRICS, Compared, best_of, differing, settings_of, winner
from whet.tui.screens.compare.tables import metrics_table, recipes_table
from whet.tui.widgets.curve import Curve

Do = Callable[[Pilot[None], CompareScreen], Any]
SETTINGS: list[dict[str, Any]] = [
    {"training.learning_rate": 2e-4, "adapter.rank": 16, "data.train": "a.jsonl", "model.name": "m"},
    {"training.learning_rate": 1e-3, "adapter.rank": 16, "data.train": "b.jsonl", "model.name": "m"},
    {"training.learning_rate": 1e-3, "adapter.rank": 16, "data.train": "b.jsonl", "model.name": "m"},
]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunDir]:
    """Three recorded runs: the second is best, the third slow and short."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path))
    monkeypatch.setattr(screen, "_settings", lambda run_id: SETTINGS[int(run_id[-1])])
    made = []
    for place, (shift, last, seconds) in enumerate(((0.4, 60, 0.5), (0.0, 60, 0.5), (0.8, 40, 1.0))):
        run = recorded_run(f"chat-2025061{place}-120000-ab1{place}")
        said: list[Event] = [*answers(0)]
        for number in range(1, last + 1):
            one = step(number, last, seconds=seconds)
            said.append(one.model_copy(update={"loss": one.loss + shift}))
            if number % 20 == 0:
                said += [held_out(number, 2.0 + shift - number / 100), *answers(number)]
        record(run, said, monkeypatch)
        run.write_state(status="finished", attempt=1, step=last)
        made.append(run)
    return made


def compared(runs: list[RunDir]) -> list[Compared]:
    found = []
    for place, (letter, run) in enumerate(zip("ABC", runs, strict=True)):
        one = Compared(letter, run.id, settings=SETTINGS[place])
        one.progress.take(api.events(run.id)[0])
        found.append(one)
    return found


def text_of(renderable: Any, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_only_keys_that_differ_are_listed() -> None:
    assert differing(SETTINGS) == {
        "training.learning_rate": ["0.0002", "0.001", "0.001"],
        "data.train": ["a.jsonl", "b.jsonl", "b.jsonl"],
    }
    assert differing([{"a": 1, "name": "x"}, {"b": None, "name": "y"}]) == {
        "a": ["1", "–"],
        "b": ["–", "null"],
    }
    assert differing([{"a": 1}, {"a": 1}]) == {}


def test_settings_are_what_was_used() -> None:
    plan = api.plan(api.recipe("demo"))
    settings = settings_of(plan)
    assert settings["training.learning_rate"] == plan.recipe.training.learning_rate
    assert settings["training.max_steps"] == plan.resolved.total_steps  # left open by the recipe


def test_columns_line_up_or_runs_are_listed_under_each_key(runs: list[RunDir]) -> None:
    three = compared(runs)
    wide = text_of(recipes_table(three, 100), 100).splitlines()
    assert wide[0].index("B") == wide[1].index("0.001") == wide[2].index("b.jsonl")
    narrow = text_of(recipes_table(three, 60), 60)
    assert "  A··  0.0002\n  ·BC  0.001\n" in narrow


def test_the_best_of_each_figure_has_a_star(runs: list[RunDir]) -> None:
    three = compared(runs)
    rows = {
        line.split()[0]: line for line in text_of(metrics_table(three, 76), 76).splitlines() if line.strip()
    }
    assert "1.4000★" in rows["held"] and rows["held"].count("★") == 1
    assert rows["steps"].count("★") == 0
    assert rows["tok/s"].count("8.19k★") == 2  # two are as fast
    assert "★" not in rows["memory"]  # all the same: no competition
    assert "1.4000*" in text_of(metrics_table(three, 120, ascii=True), 120)
    assert winner(three) is three[1]


def test_no_figure_is_best_of_nothing() -> None:
    loss = next(metric for metric in METRICS if metric.name == "loss")
    assert best_of(loss, [None, 1.0]) == set() == best_of(loss, [float("nan"), 2.0])
    assert best_of(loss, [3.0, None, 1.0, float("nan")]) == {2}
    assert winner([Compared("A", "a"), Compared("B", "b")]) is None


def opened(runs: list[RunDir], do: Do, size: tuple[int, int] = (80, 24), ascii: bool = False) -> None:
    async def look() -> None:
        app = WhetApp()
        app.kept.ascii = ascii
        async with app.run_test(size=size) as pilot:
            app.open("compare", [run.id for run in runs])
            await settle(pilot)
            await do(pilot, next(one for one in app.screen_stack if isinstance(one, CompareScreen)))

    anyio.run(look)


@pytest.mark.parametrize("size", SIZES)
def test_three_runs_beside_each_other(runs: list[RunDir], size: tuple[int, int]) -> None:
    async def do(pilot: Pilot[None], opened: CompareScreen) -> None:
        await same_as_committed(pilot.app, "compare")

    opened(runs, do, size)


def test_every_part_by_key_on_a_small_terminal(runs: list[RunDir]) -> None:
    async def do(pilot: Pilot[None], opened: CompareScreen) -> None:
        assert "1.4000★" in await pressed(pilot, "2")
        assert "training.learning_rate" in await pressed(pilot, "3")
        assert "base  Norway." in await pressed(pilot, "4")
        assert "loss by tokens" in await pressed(pilot, "1", "s")
        assert "loss by seconds of training" in await pressed(pilot, "s")
        assert "held-out loss (log) by step" in await pressed(pilot, "s", "h", "g")

    opened(runs, do)


def test_held_out_losses_stand_where_their_step_was(runs: list[RunDir]) -> None:
    async def do(pilot: Pilot[None], opened: CompareScreen) -> None:
        await pressed(pilot, "h", "s")
        line = opened._lines(opened.runs[0])[0]
        assert line.x.tolist() == [20 * 4096, 40 * 4096, 60 * 4096]
        await pressed(pilot, "s")
        assert opened._lines(opened.runs[2])[0].x.tolist() == [20, 40]

    opened(runs, do)


def test_curves_are_told_apart_without_colour(runs: list[RunDir]) -> None:
    async def do(pilot: Pilot[None], opened: CompareScreen) -> None:
        drawn = "".join(shown(pilot.app).splitlines()[4:21])
        assert all(drawn.count(letter) > 3 for letter in "ABC") and drawn.isascii()

    opened(runs, do, ascii=True)


def test_the_best_is_named_and_opened(runs: list[RunDir], monkeypatch: pytest.MonkeyPatch) -> None:
    went: list[tuple[object, ...]] = []

    async def do(pilot: Pilot[None], opened: CompareScreen) -> None:
        assert "B has the lowest held-out loss, 1.4000." in shown(pilot.app)
        assert "The recipes differ in training.learning_rate, data.train." in shown(pilot.app)
        monkeypatch.setattr(WhetApp, "open", lambda app, *where: went.append(where))
        await pressed(pilot, "o")
        assert went == [("run", runs[1].id)]

    opened(runs, do)


def test_runs_that_go_on_are_read_on(runs: list[RunDir], monkeypatch: pytest.MonkeyPatch) -> None:
    async def do(pilot: Pilot[None], opened: CompareScreen) -> None:
        record(runs[2], [step(number, 40, loss=1.0) for number in range(41, 44)], monkeypatch)
        opened.look_again()
        await settle(pilot)
        assert len(opened.runs[2].progress.curves) == 43
        assert opened.query_one(Curve).display

    opened(runs, do)


def test_a_run_that_is_gone_is_one_card(runs: list[RunDir]) -> None:
    async def do(pilot: Pilot[None], opened: CompareScreen) -> None:
        runs[0].path.rename(runs[0].path.with_name(".gone"))
        opened.look_again()
        await settle(pilot)
        assert isinstance(pilot.app.screen, ErrorCard)
        await pressed(pilot, "escape")
        opened.look_again()
        await settle(pilot)
        assert pilot.app.screen is opened

    opened(runs, do)
