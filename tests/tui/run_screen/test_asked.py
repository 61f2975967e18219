"""The Run screen of jobs, and what is asked of a run: to stop, to go on, to be mended; what it outlives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.fake_runs import until, write_job
from support.recorded_runs import answers, held_out, record
from support.run_screens import LOOP, opened, pressed, seen_again, settle, told
from support.screens import shown
from textual.pilot import Pilot
from textual.widgets import Static

from whet.engine import api
from whet.engine.runs import supervisor
from whet.engine.runs.events import DoneEvent, Event, ExportEvent, PhaseEvent
from whet.engine.runs.jobs import EvaluateJob, ExportJob
from whet.engine.runs.store import RunDir, RunStore
from whet.tui.app import WhetApp
from whet.tui.screens.cards import ErrorCard, Question
from whet.tui.screens.run import RunScreen
from whet.tui.screens.run.cards import PageCard
from whet.tui.screens.run.log import LogScreen


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
