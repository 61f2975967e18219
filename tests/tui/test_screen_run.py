"""The Run screen on recorded events and stand-in workers: what it shows, asks and outlives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from support.fake_runs import SOURCE, until, write_job
from support.recorded_runs import BEGAN, answers, held_out, record, recorded_run, step, training
from support.screens import SIZES, same_as_committed, shown
from textual.pilot import Pilot
from textual.widgets import Static
from textual_plot import PlotWidget

from whet.engine import api
from whet.engine.findings import Finding, Fix
from whet.engine.runs import locks, supervisor
from whet.engine.runs.events import DoneEvent, Event, ExportEvent, FindingEvent, PhaseEvent
from whet.engine.runs.jobs import EvaluateJob, ExportJob
from whet.engine.runs.store import RunDir, RunStore
from whet.engine.surroundings.facts import GPUHealth
from whet.tui.app import WhetApp
from whet.tui.screens.cards import ErrorCard, Question
from whet.tui.screens.run import RunScreen, screen
from whet.tui.screens.run.cards import PageCard
from whet.tui.screens.run.log import LogScreen
from whet.tui.screens.run.look import Look
from whet.tui.widgets.curve import Curve

SPIKE = Finding(
    id="T02",
    severity="warning",
    title="The loss spiked at step 12.",
    evidence={"step": 12, "loss": 4.2},
    fix=Fix(text="Lower the learning rate.", patch={"training.learning_rate": 1e-4}),
)
LOOP = "step(context, 1)\ntrain_until_stopped(context)\nraise Stopped"
Do = Callable[[Pilot[None], RunScreen], Any]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own; facts that vary by machine and moment are fixed."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.setattr(screen, "_plan", lambda run_id: None)


@pytest.fixture
def run() -> RunDir:
    return recorded_run()


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at a minute after the start, at a path that does not vary."""

    def look(run_id: str, offset: int) -> Look:
        seen = real(run_id, offset)
        path = f"~/.whet/runs/{seen.summary.id}"
        return replace(seen, now=BEGAN + 60, summary=seen.summary.model_copy(update={"path": path}))

    real = screen.look
    monkeypatch.setattr(screen, "look", look)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[..., RunDir]]:
    """Launch a stand-in worker on a run; who still lives at the end is told to stop."""
    started: list[RunDir] = []

    def launch(run: RunDir, body: str = LOOP) -> RunDir:
        supervisor.resume(run, worker=write_job(tmp_path, body))
        started.append(run)
        return run

    yield launch
    for run in started:
        if run.alive():
            run.control.request_stop(now=True)
            supervisor.wait(run, 20)


@pytest.fixture
def held() -> Iterator[Callable[..., RunDir]]:
    """Hold a run's lock, as its worker would, and put it into a state."""
    kept = []

    def hold(run: RunDir, status: str = "running", **state: Any) -> RunDir:
        kept.append(locks.hold(run.lock))
        run.write_state(status=status, launched=BEGAN, attempt=1, **state)
        return run

    yield hold
    for lock in kept:
        lock.release()


def opened(run: RunDir, do: Do, size: tuple[int, int] = (80, 24), ascii: bool = False) -> None:
    """Open the screen of a run, let it read, and go on."""

    async def look() -> None:
        app = WhetApp()
        app.kept.ascii = ascii
        async with app.run_test(size=size) as pilot:
            app.open("run", run.id)
            await settle(pilot)
            await do(pilot, next(one for one in app.screen_stack if isinstance(one, RunScreen)))

    anyio.run(look)


async def settle(pilot: Pilot[None]) -> None:
    await pilot.pause()
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    await pilot.pause()


async def pressed(pilot: Pilot[None], *keys: str) -> str:
    await pilot.press(*keys)
    await settle(pilot)
    return shown(pilot.app)


async def seen_again(pilot: Pilot[None], opened: RunScreen, words: str) -> str:
    """Look until the screen says something: the worker is another process."""
    with anyio.fail_after(20):
        while words not in shown(pilot.app):
            opened.look_again()
            await settle(pilot)
            await anyio.sleep(0.02)
    return shown(pilot.app)


def told(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    said = training()
    said.insert(20, FindingEvent(finding=SPIKE))
    record(run, said, monkeypatch)
    return said


# --- what it shows


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


# --- jobs on a run


def test_an_evaluation_shows_base_beside_tuned(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    job = RunStore().create_job(EvaluateJob(parent=run.id), "an agent")
    said: list[Event] = [
        PhaseEvent(phase="load"),
        held_out(0, 2.3),
        *answers(0),
        held_out(60, 1.2),
        *answers(60),
    ]
    said.append(DoneEvent(status="finished"))
    record(job, said, monkeypatch)
    losses = {"base_loss": 2.3, "tuned_loss": 1.2, "base_perplexity": 9.97, "tuned_perplexity": 3.32}
    job.write_state(status="finished", attempt=1, summary=losses | {"rows": 200})

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        said = shown(pilot.app)
        assert f"evaluate of {run.id}" in said.splitlines()[0]
        assert "Base → tuned: loss 2.3000 → 1.2000" in said and "200 rows" in said
        assert "Norway. Norway." in said and "Oslo" in said

    opened(job, do, (120, 36))


def test_an_export_shows_its_phase_then_its_proof(
    run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = RunStore().create_job(ExportJob(parent=run.id, section=None), "anna")
    end = record(job, [PhaseEvent(phase="export", detail="GGUF q4_k_m", done=1, total=4)], monkeypatch)
    held(job)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        assert "writing GGUF q4_k_m 25%" in shown(pilot.app)
        proof = {"name": "tokens", "status": "fail", "summary": "3 of 9 differ", "fix": "Convert again."}
        written: list[Event] = [
            ExportEvent(kind="gguf", path="/x/tiny-q4_k_m.gguf", bytes=9 << 20),
            ExportEvent(
                kind="smoke", path="/x/tiny-q4_k_m.gguf", detail={"status": "fail", "proofs": [proof]}
            ),
        ]
        record(job, written, monkeypatch, began=end)
        job.write_state(status="finished", summary={"verdict": "fail"})
        said = await seen_again(pilot, opened, "1 file(s) written; proof: fail.")
        assert "9.0 MiB  tiny-q4_k_m.gguf" in said and "✗ tokens     3 of 9 differ" in said

    opened(job, do)


# --- what is asked of it


def test_a_stop_asks_first_then_stops_and_resumes(
    run: RunDir, worker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(run)
    monkeypatch.setattr(
        api, "resume", lambda run_id: supervisor.resume(api.find(run_id), worker=write_job(tmp_path, LOOP))
    )

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        await seen_again(pilot, opened, "running")
        await pressed(pilot, "p")
        assert isinstance(pilot.app.screen, Question)
        assert "Pausing is a stop that can be resumed" in " ".join(shown(pilot.app).split())
        await pressed(pilot, "n")
        assert run.control.stop_requested() is None and run.alive()
        await pressed(pilot, "x", "y")
        await seen_again(pilot, opened, "Stopped at step")
        assert run.status() == "stopped"
        await pressed(pilot, "r")
        await seen_again(pilot, opened, "running")
        assert run.read_state().attempt == 2 and run.control.stop_requested() is None

    opened(run, do)


def test_asked_a_second_time_it_ends_at_once_and_only_then(run: RunDir, worker: Any) -> None:
    deaf = "step(context, 1)\nwhile True:\n    time.sleep(0.01)"
    worker(run, deaf)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        await seen_again(pilot, opened, "running")
        await pressed(pilot, "x", "y")
        await seen_again(pilot, opened, "Asked to stop")
        assert run.control.stop_requested() == "checkpoint" and run.alive()
        assert "at once" in await pressed(pilot, "x")
        await pressed(pilot, "y")
        until(lambda: not run.alive(), "the end at once")
        await seen_again(pilot, opened, "stopped")

    opened(run, do)


def test_a_stop_that_somebody_else_asked_for_meanwhile_is_not_made_stronger(
    run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(run)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        await pressed(pilot, "x")
        api.stop(run.id)  # an agent, while the question stands
        await pressed(pilot, "y")
        assert run.control.stop_requested() == "checkpoint"

    opened(run, do)


def test_a_checkpoint_is_asked_for_by_key(run: RunDir, held: Any) -> None:
    held(run)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        await pressed(pilot, "w")
        assert run.control.take_checkpoint_request()

    opened(run, do)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("x", "The run is finished: there is nothing to stop."),
        ("p", "The run is finished: there is nothing to stop."),
        ("r", "The run is finished: only what stopped or failed is resumed."),
        ("w", "No worker runs that could write a checkpoint."),
        ("a", "Nothing was found that needs a fix."),
        ("right_square_bracket", "No answers yet."),
    ],
)
def test_what_cannot_be_done_says_why(run: RunDir, key: str, words: str) -> None:
    run.write_state(status="finished", attempt=1)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        await pressed(pilot, key)
        assert [one.message for one in pilot.app._notifications] == [words]

    opened(run, do)


def test_a_crash_of_the_worker_becomes_a_card_and_the_screen_lives(
    run: RunDir, worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "run", lambda run_id: SimpleNamespace(findings=[]))
    worker(run, "step(context, 1)\nraise MemoryError('no room for 2 GiB')")

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        said = await seen_again(pilot, opened, "Failed: run.out_of_memory")
        assert "no room for 2 GiB" in said and "l log" in said and "b debug bundle" in said
        await pressed(pilot, "l")
        assert isinstance(pilot.app.screen, LogScreen) and "MemoryError" in shown(pilot.app)
        await pressed(pilot, "escape")
        assert pilot.app.screen is opened

    opened(run, do)


def test_a_fix_is_shown_as_a_diff_and_opened_as_a_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunStore().create(api.plan(api.recipe("demo")), "anna")
    told(run, monkeypatch)
    run.write_state(status="stopped", attempt=1, step=60)
    went: list[tuple[object, ...]] = []
    before = run.recipe.read_bytes()

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        await pressed(pilot, "6")
        said = await pressed(pilot, "a")
        assert isinstance(pilot.app.screen, PageCard)
        assert "+  learning_rate: 0.0001" in said
        monkeypatch.setattr(WhetApp, "open", lambda app, *where: went.append(where))
        await pressed(pilot, "enter")
        ((name, draft),) = went
        assert name == "new" and isinstance(draft, Path)
        assert api.recipe(draft).training.learning_rate == 1e-4
        assert run.recipe.read_bytes() == before

    opened(run, do)


def test_events_of_a_newer_whet_are_one_card_and_not_one_a_second(run: RunDir) -> None:
    run.events.write_text('{"type": "hologram", "v": 99}\n', encoding="utf-8")
    run.write_state(status="stopped")

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        assert isinstance(pilot.app.screen, ErrorCard) and "run.event_unknown" in shown(pilot.app)
        await pressed(pilot, "escape")
        opened.look_again()
        await settle(pilot)
        assert pilot.app.screen is opened
        assert "not read further" in str(opened.query_one("#run-status", Static).render())

    opened(run, do)


def test_every_form_of_an_action_names_the_run(
    run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(run, monkeypatch)
    held(run)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        first, second, *_, last = opened.actions()
        assert first.cli == f"whet attach {run.id}" and second.mcp.startswith(f'job_stop(run_id="{run.id}"')
        assert last.yaml == "training:\n  learning_rate: 0.0001\n"

    opened(run, do)


def test_steps_after_a_resume_are_marked(run: RunDir, held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record(run, training(), monkeypatch)
    record(run, [step(n, loss=1.5) for n in range(41, 50)], monkeypatch, attempt=2)
    held(run, step=49)

    async def do(pilot: Pilot[None], opened: RunScreen) -> None:
        assert "resumed at 41" in shown(pilot.app)
        assert len(opened.progress.curves) == 49

    opened(run, do)
