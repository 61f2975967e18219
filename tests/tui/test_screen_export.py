"""Export: files by size, room on the disk, progress, and the proof of each file step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.hub_standin import StandIn, in_place_of_the_hub
from support.plan_inputs import machine
from support.screens import SIZES, same_as_committed, shown, until, until_shown
from support.tiny_runs import create_run, tiny_recipe, write_chat_rows
from textual.widgets import Input, RadioButton

from whet.engine import api
from whet.engine.demo import MODEL_DIR
from whet.engine.export.verdict import Proof, Verdict
from whet.engine.runs.events import EventLog
from whet.engine.runs.store import RunDir
from whet.tui.app import WhetApp
from whet.tui.export_plan import MERGED, choices, needed
from whet.tui.screens.export import ExportScreen
from whet.tui.screens.export_log import ExportLog
from whet.tui.screens.push import PushCard
from whet.tui.widgets.check_list import CheckList

PROOFS = [
    {"name": "vocabulary", "status": "pass", "summary": "343 of 343 texts give the same ids."},
    {"name": "logits", "status": "fail", "summary": "Mean KL from f16 is 0.9 nat.", "fix": "Export q8_0."},
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    made = create_run(tiny_recipe(Path(MODEL_DIR), write_chat_rows(tmp_path / "rows.jsonl")))
    monkeypatch.setattr(api, "machine", lambda: machine())
    return made


@pytest.mark.parametrize("size", SIZES)
def test_files_are_chosen_made_and_proven(
    run: RunDir, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create_run(tiny_recipe(Path(MODEL_DIR), tmp_path / "rows.jsonl"))
    job.write_state(status="running", method="export", parent=run.id)
    asked: list[tuple[object, ...]] = []

    def start(run_id: str, types: list[str], merged: bool, *, started_by: str) -> str:
        asked.append((run_id, types, merged, started_by))
        return job.id

    monkeypatch.setattr(api, "start_export", start)
    log = EventLog(job.events, 1)

    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=size) as pilot:
            app.open("export", run.id)
            await pilot.pause()
            screen = app.screen
            assert isinstance(screen, ExportScreen)
            await until(pilot, lambda: screen.choices, "the choices")
            screen.query_one(CheckList).focus()
            screen.set_heading("whet · export")  # a run's id is another one each time
            await until_shown(pilot, "[x] q4_k_m")
            await same_as_committed(app, "export")
            await pilot.press("j", "space", "j", "j", "space", "g")
            await until(pilot, lambda: asked, "the start")
            assert asked == [(run.id, ["q4_k_m", "q8_0"], True, "tui")]
            log.append(api.PhaseEvent(phase="export", detail="GGUF q4_k_m", done=30, total=100))
            await until_shown(pilot, "writing GGUF q4_k_m")
            log.append(api.ExportEvent(kind="smoke", path="/x/demo-q4_k_m.gguf", detail={"proofs": PROOFS}))
            job.write_state(
                status="failed", error={"code": "export.stop", "message": "Wrong.", "hint": "Look."}
            )
            await until_shown(pilot, "✗ [export.stop] Wrong. Look.")
            screen.query_one("#made").scroll_home(animate=False)
            await until_shown(pilot, "✓ vocabulary")
            assert "✗ logits" in shown(app)

    anyio.run(look)


def test_a_full_disk_and_nothing_chosen_start_nothing(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "machine", lambda: machine(disk_free=1000))
    monkeypatch.setattr(api, "start_export", lambda *_, **__: pytest.fail("it was started"))

    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=(120, 36), notifications=True) as pilot:
            app.open("export", run.id)
            await pilot.pause()
            screen = app.screen
            assert isinstance(screen, ExportScreen)
            await until_shown(pilot, "too little")
            await pilot.press("g")
            await until_shown(pilot, "too little room")
            screen.query_one(CheckList).focus()
            await pilot.press("space", "g")
            await until_shown(pilot, "Choose at least one file")

    anyio.run(look)


def test_of_a_model_with_classes_only_the_merged_weights_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"note {n}", "label": n % 2}) + "\n" for n in range(8)))
    made = create_run(tiny_recipe(Path(MODEL_DIR), rows, method={"kind": "classification"}))

    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=(120, 36)) as pilot:
            app.open("export", made.id)
            await pilot.pause()
            screen = app.screen
            assert isinstance(screen, ExportScreen)
            await until(pilot, lambda: screen.choices, "the choices")
            assert [one.name for one in screen.choices] == [MERGED]
            await until_shown(pilot, "prove that the merged model gives")
            assert screen.query_one(CheckList).ticked == [MERGED]

    anyio.run(look)


def test_what_was_made_before_shows_its_proofs(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    proofs = [Proof(name="logits", status="fail", summary="Mean KL is 0.9 nat.", fix="Export q8_0.")]
    made = api.Artifact(
        kind="gguf", path=Path("/x/a-q4_k_m.gguf"), bytes=9, verdict=Verdict.of(proofs, Path("/x/a.gguf"))
    )
    monkeypatch.setattr(api, "artifacts", lambda run_id: [made])

    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=(120, 36)) as pilot:
            app.open("export", run.id)
            await until_shown(pilot, "✗ logits     Mean KL is 0.9 nat.")
            seen = shown(app)
            assert "fix: Export q8_0." in seen and "do not ship it" in seen and "✓ there" in seen

    anyio.run(look)


def test_push_asks_for_an_address_and_says_what_the_hub_said(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push(run_id: str, repo: str, part: str, private: bool = True, tell: Any = None) -> str:
        assert (run_id, part, private) == (run.id, "gguf", True)
        tell(api.PhaseEvent(phase="push", detail="demo.gguf", done=1, total=4))
        if repo == "me/unproven":
            raise api.WhetError("hub.unproven", "demo.gguf has no verdict.", "Prove it first.")
        return f"https://hub/{repo}"

    monkeypatch.setattr(api, "push", push)

    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=(100, 30)) as pilot:
            card = PushCard(run.id)
            app.push_screen(card)
            await pilot.pause()
            await pilot.press("enter")
            await until_shown(pilot, "Type the address first")
            for repo, said in (("me/unproven", "has no verdict"), ("me/bot", "It is at https://hub/me/bot")):
                card.query_one("#repo").value = repo  # type: ignore[attr-defined]
                await pilot.press("enter")
                await until_shown(pilot, said)

    anyio.run(look)


def test_sizes_follow_from_bits_and_the_worst_moment_counts_what_is_temporary() -> None:
    types = {"q4_k_m": 4.89, "q8_0": 8.5, "f16": 16.0, "q2_k": 3.17}
    every = choices(8_000_000_000, types, {MERGED: 16_000_000_000, "fp8": 9_000_000_000})
    assert [one.name for one in every] == ["q4_k_m", "q8_0", "f16", MERGED, "fp8", "q2_k"]
    sizes = {one.name: one.bytes for one in every}
    assert sizes["q4_k_m"] == 4_890_000_000 and sizes[MERGED] == sizes["f16"] == 16_000_000_000
    assert needed([], every) == 0
    assert needed(["q4_k_m"], every) == sizes["q4_k_m"] + 32_000_000_000
    assert needed([MERGED], every) == 16_000_000_000
    assert needed(["fp8"], every) == 25_000_000_000


def test_a_resumed_job_forgets_the_proofs_of_its_first_attempt() -> None:
    log = ExportLog()
    log.hear(api.ExportEvent(kind="smoke", path="a.gguf", detail={"proofs": PROOFS}, attempt=1))
    log.hear(api.PhaseEvent(phase="merge", detail="adapter into base", attempt=2))
    assert log.proofs == {} and log.phase == "merging"


def test_the_card_pushes_to_a_hub(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real function behind the card, through the hub's client, to a stand-in of the hub."""
    (run.export / "adapter").mkdir()
    (run.export / "adapter" / "adapter_model.safetensors").write_bytes(b"weights" * 100)
    (run.export / "adapter" / "adapter_config.json").write_text("{}")
    run.write_state(status="finished", launched=1.0)

    async def look(hub: StandIn) -> None:
        app = WhetApp()
        async with app.run_test(size=(100, 30)) as pilot:
            card = PushCard(run.id)
            app.push_screen(card)
            await pilot.pause()
            card.query_one("#repo", Input).value = "me/bot"
            card.query_one("#repo", Input).focus()
            await pilot.press("enter")
            await until_shown(pilot, "holds no gguf to upload")
            card.query(RadioButton)[1].value = True
            await pilot.press("enter")
            await until_shown(pilot, f"It is at {hub.url}/me/bot")

    with in_place_of_the_hub(StandIn(), monkeypatch) as hub:
        anyio.run(look, hub)
    assert hub.repositories["me/bot"].private
    assert hub.names("me/bot") == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
