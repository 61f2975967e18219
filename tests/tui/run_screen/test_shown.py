"""What the Run screen shows of recorded events: curves, figures, answers, and how a run stands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support.recorded_runs import BEGAN, answers, held_out, record, step, training
from support.run_screens import SPIKE, opened, pressed, settle, told
from support.screens import SIZES, same_as_committed, shown
from textual.pilot import Pilot
from textual.widgets import Static
from textual_plot import PlotWidget

from whet.engine import api
from whet.engine.runs.events import DoneEvent, Event
from whet.engine.runs.store import RunDir
from whet.engine.surroundings.facts import GPUHealth
from whet.tui.app import WhetApp
from whet.tui.screens.run import RunScreen
from whet.tui.widgets.curve import Curve


@pytest.mark.parametrize("size", SIZES)
def test_a_running_run(
    run: RunDir, frozen: None, held: Any, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    gpu = GPUHealth(
        index=0, uuid="GPU-1", name="H200", visible=True, memory_total=141 << 30, memory_free=120 << 30,
        processes=[], utilization=97, temperature=61, slowed_by=["power brake"],
    )  # fmt: skip
    monkeypatch.setattr(api, "gpus", lambda: [gpu])
    told(run, monkeypatch)
    held(run, step=60, total_steps=120, gpu="GPU-1")

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        await same_as_committed(pilot.app, "run")

    opened(run, do, size)


@pytest.mark.parametrize("size", SIZES)
def test_a_failed_run_is_a_card_with_the_keys_that_help(
    run: RunDir, frozen: None, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    told(run, monkeypatch)
    hint = "Lower training.batch_size or model.max_length."
    error = {"code": "run.out_of_memory", "message": "Memory ran out: tried to allocate 2 GiB.", "hint": hint}
    run.write_state(status="failed", attempt=1, step=60, error=error)
    monkeypatch.setattr(api, "run", lambda run_id: SimpleNamespace(findings=[SPIKE]))

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        await same_as_committed(pilot.app, "run-failed")

    opened(run, do, size)


def test_in_ascii_no_other_character_is_drawn(
    run: RunDir, frozen: None, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(run, monkeypatch)
    held(run, step=60)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        body = shown(pilot.app).splitlines()[3:20]
        assert any("**" in line for line in body) and any(" E" in line for line in body)
        plots = [line[:50] for line in body]
        assert "".join(plots).isascii()
        await same_as_committed(pilot.app, "run-ascii")

    opened(run, do, ascii=True)


@pytest.mark.parametrize("theme", ["ansi-dark", "whet"])
def test_without_colour_and_in_the_terminal_s_own(
    run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch, theme: str
) -> None:
    if theme == "whet":
        monkeypatch.setenv("NO_COLOR", "1")
    told(run, monkeypatch)
    held(run, step=60)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        pilot.app.theme = theme
        for key in "1234567":
            assert "60/120" in await pressed(pilot, key)
        pilot.app.export_screenshot()  # draws the whole screen through the filters
        await pilot.resize_terminal(200, 50)
        await settle(pilot)
        assert "learning rate" in shown(pilot.app)

    opened(run, do)


def test_before_the_first_step_words_stand_where_the_curve_will(
    run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(run)
    record(run, training()[:3], monkeypatch)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        curve = opened.query_one("#curve-loss", Curve)
        assert not curve.query_one(PlotWidget).display
        assert "The loss shows from the first step on." in shown(pilot.app)
        before = opened._offset
        assert before == run.events.stat().st_size
        record(run, training()[3:], monkeypatch)
        opened.look_again()
        await settle(pilot)
        assert curve.query_one(PlotWidget).display and "60/120" in shown(pilot.app)
        assert opened._offset == run.events.stat().st_size > before

    opened(run, do)


def test_only_what_is_new_is_read(run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    held(run)
    record(run, training(), monkeypatch)
    asked: list[int] = []
    real = api.events

    def events(run_id: str, offset: int = 0, most: int = -1) -> tuple[list[Event], int]:
        asked.append(offset)
        return real(run_id, offset, most)

    monkeypatch.setattr(api, "events", events)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        opened.look_again()
        await settle(pilot)
        assert asked[0] == 0 and set(asked[1:]) == {run.events.stat().st_size}

    opened(run, do)


def test_what_did_not_change_is_not_drawn_again(
    run: RunDir, held: Any, frozen: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(run, monkeypatch)
    held(run, step=60)
    drawn: list[str] = []
    monkeypatch.setattr(Curve, "show", lambda curve, *_, **__: drawn.append(str(curve.id)))
    update = Static.update

    def updated(widget: Static, *content: Any, **options: Any) -> None:
        drawn.append(str(widget.id))
        update(widget, *content, **options)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        monkeypatch.setattr(Static, "update", updated)
        drawn.clear()
        opened.look_again()
        await settle(pilot)
        assert drawn == []
        record(run, [step(61)], monkeypatch)
        opened.look_again()
        await settle(pilot)
        assert {"curve-loss", "run-status", "figures"} <= set(drawn)
        assert "curve-speed" not in drawn and "run-tabs" not in drawn

    opened(run, do)


def test_below_another_screen_it_does_not_look(
    run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(run, monkeypatch)
    held(run, step=60)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        await pressed(pilot, "l")
        record(run, [step(61)], monkeypatch)
        opened.look_again()
        await settle(pilot)
        assert len(opened.progress.curves) == 60
        await pressed(pilot, "escape")
        assert len(opened.progress.curves) == 61

    opened(run, do)


def test_each_tab_by_key_and_by_click(run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told(run, monkeypatch)
    held(run, step=60)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        assert "learning rate" in await pressed(pilot, "2")
        assert "gradient norm" in await pressed(pilot, "3")
        assert "tokens per second" in await pressed(pilot, "4")
        said = await pressed(pilot, "5")
        assert "Norway. Norway." in said and "The capital of Norway is Oslo." in said
        assert "training.learning_rate=0.0001" in await pressed(pilot, "6")
        said = await pressed(pilot, "7")
        assert "step 60  25.0 MiB" in said and "24 of 24 layers fused" in said
        await pilot.click("#run-tabs", offset=(3, 0))
        await settle(pilot)
        assert opened.tab == "loss" and "held out" in shown(pilot.app)

    opened(run, do)


def test_scale_smoothing_and_zoom(run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told(run, monkeypatch)
    held(run, step=60)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        assert "learning rate (log)" in await pressed(pilot, "2", "g")
        assert "learning rate  " in await pressed(pilot, "g")
        curve = opened.query_one("#curve-loss", Curve)
        await pressed(pilot, "1")
        assert len(curve._lines) == 3  # each step, their mean, held out
        await pressed(pilot, "m")
        assert len(curve._lines) == 2
        plot = curve.query_one(PlotWidget)
        plot.set_xlimits(10, 20)
        await pressed(pilot, "z")
        assert (plot._x_min, plot._x_max) == (1, 60)

    opened(run, do)


def test_what_a_method_measures_stands_beside_the_loss_and_is_drawn(
    run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {0: 0.51, 20: 0.8, 40: 0.996}
    said = [
        held_out(at, 2.0 - at / 40, metrics={"ndcg@10": value, "rewards/accuracies": value / 2})
        for at, value in found.items()
    ]
    record(run, [*training(last=40), *said], monkeypatch)
    held(run)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        beside = shown(pilot.app)
        assert "ndcg@10    0.510→0.996" in beside and "accuracies 0.255→0.498" in beside
        drawn = await pressed(pilot, "o")
        assert "ndcg@10   ◆ 0.996" in drawn
        curve = opened.query_one("#curve-loss", Curve)
        assert [list(line.y) for line in curve._lines] == [list(found.values())] * 2
        assert "rewards/accuracies   ◆" in await pressed(pilot, "o")
        assert "held out 1" in await pressed(pilot, "o")

    opened(run, do)


def test_what_steps_measure_is_drawn_as_the_loss_is(
    run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [step(at).model_copy(update={"metrics": {"reward": at / 100}}) for at in range(1, 61)]
    record(run, [*said[:50], *said[40:50]], monkeypatch)
    held(run)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        assert "reward   0.105→0.405" in shown(pilot.app)
        record(run, said[30:], monkeypatch, attempt=2)
        opened.look_again()
        await settle(pilot)
        assert list(opened.progress.step_metrics["reward"]) == list(range(1, 61))
        assert "reward  0.6" in await pressed(pilot, "o")
        assert len(opened.query_one("#curve-loss", Curve)._lines) == 2

    opened(run, do)


def test_runs_that_measure_nothing_more_say_so(
    run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(run, monkeypatch)
    held(run, step=60)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        await pressed(pilot, "o")
        assert "tells nothing beside the loss" in next(one.message for one in pilot.app._notifications)
        assert opened.measure is None

    opened(run, do)


def test_answers_of_each_evaluation(run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record(
        run,
        [*answers(0), *answers(20), *(a.model_copy(update={"answer": "later"}) for a in answers(40))],
        monkeypatch,
    )
    held(run)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        assert "later" in await pressed(pilot, "5")
        assert "Oslo" in await pressed(pilot, "left_square_bracket")
        assert "later" in await pressed(pilot, "right_square_bracket", "right_square_bracket")

    opened(run, do)


def test_what_models_write_is_shown_and_never_obeyed(
    run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [answers(0)[0], answers(20)[0].model_copy(update={"answer": "\x1b[31mred [bold]b[/bold] [/x]"})]
    record(run, said, monkeypatch)
    held(run)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        assert "␛[31mred [bold]b[/bold] [/x]" in await pressed(pilot, "5")

    opened(run, do)


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        ("waiting", {"behind": ["older-1", "older-2"]}, "Waits for a GPU behind older-1, older-2."),
        ("waiting", {}, "next in line"),
        ("queued", {}, "its worker is starting"),
    ],
)
def test_who_waits_says_for_whom(
    run: RunDir, held: Any, status: str, state: dict[str, Any], words: str
) -> None:
    held(run, status, **state)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        assert words in shown(pilot.app)

    opened(run, do)


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        ("stopped", {}, "r resumes from step 60"),
        ("stopped", {"summary": {"paused_by": "T03"}}, "Stopped at step 60 because of T03"),
        ("running", {"launched": BEGAN}, "the worker was killed, or the machine went down"),
    ],
)
def test_who_can_go_on_says_from_where(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, status: str, state: dict[str, Any], words: str
) -> None:
    record(run, training(), monkeypatch)
    run.write_state(status=status, attempt=1, step=60, **state)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        assert words in shown(pilot.app)

    opened(run, do)


def test_a_finished_run_leads_on(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    record(run, [*training(), DoneEvent(status="finished")], monkeypatch)
    run.write_state(status="finished", attempt=1, step=60)
    went: list[tuple[object, ...]] = []

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        assert "Held-out loss 2.4131 → 1.6463 (step 60)." in shown(pilot.app)
        monkeypatch.setattr(WhetApp, "open", lambda app, *where: went.append(where))
        await pressed(pilot, "c", "e")
        assert went == [("chat", run.id), ("export", run.id)]

    opened(run, do)


def test_steps_after_a_resume_are_marked(run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record(run, training(), monkeypatch)
    record(run, [step(n, loss=1.5) for n in range(41, 50)], monkeypatch, attempt=2)
    held(run, step=49)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        assert "resumed at 41" in shown(pilot.app)
        assert len(opened.progress.curves) == 49

    opened(run, do)
