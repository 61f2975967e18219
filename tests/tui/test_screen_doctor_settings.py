"""Doctor and settings, jump mode, and the door without a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import anyio
import pytest
from support.plan_inputs import gpu, machine
from support.screens import SIZES, same_as_committed, until, until_shown

from whet import tui
from whet.engine import api
from whet.engine.doctor import report_of
from whet.engine.surroundings import Surroundings
from whet.tui import kept
from whet.tui.app import SCREENS_BY_NAME, WhetApp
from whet.tui.screens.doctor import doctor_advice
from whet.tui.screens.jump import JumpScreen
from whet.tui.screens.settings import SettingsScreen, all_bindings


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHET_HOME", str(tmp_path))
    return tmp_path


def test_the_doctor_shows_machine_flags_and_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of(machine(gpu()), Surroundings())
    monkeypatch.setattr(api, "doctor", lambda progress=None: report)
    monkeypatch.setenv("WHET_LOW_BANDWITH", "1")

    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=(120, 36)) as pilot:
            app.open("doctor")
            await until_shown(pilot, "Test GPU")
            await until_shown(pilot, "Check the kernels on this GPU")
            await until_shown(pilot, "nothing wrong found")
            await pilot.press("2")
            await until_shown(pilot, "WHET_LOW_BANDWIDTH")

    anyio.run(look)
    assert doctor_advice(report, kernels_checked=True)[-1].key == "b"


@pytest.mark.parametrize("size", SIZES)
def test_settings_are_seen_and_kept_at_once(size: tuple[int, int], home: Path) -> None:
    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=size) as pilot:
            app.open("settings")
            await pilot.pause()
            assert isinstance(app.screen, SettingsScreen)
            await pilot.press("b")
            await until(pilot, lambda: app.kept.low_bandwidth, "the switch")
            assert json.loads(kept.kept_file().read_text())["low_bandwidth"] is True
            assert app.seconds_between_looks == 5.0

    anyio.run(look)


def test_a_key_can_be_changed_in_the_file(home: Path) -> None:
    kept.save(kept.Kept(keymap={"home.settings": "f3"}))

    async def look() -> None:
        app = WhetApp()
        async with app.run_test() as pilot:
            await pilot.press("f3")
            await until(pilot, lambda: isinstance(app.screen, SettingsScreen), "settings")

    anyio.run(look)


def test_every_binding_of_every_screen_has_an_id() -> None:
    named = {binding.id for binding in all_bindings()}
    folder = Path(tui.__file__).parent
    written = {
        id for file in folder.rglob("*.py") for id in re.findall(r'\bid="(\w+\.\w+)"', file.read_text())
    }
    assert written <= named, written - named
    bare = [
        f"{file.name}: {line}"
        for file in folder.rglob("*.py")
        for line in re.findall(r"^ *Binding\(.*\),?$", file.read_text(), re.MULTILINE)
        if "id=" not in line
    ]
    assert not bare
    assert {"app.help", "home.new", "doctor.bundle", "chat.prompt", "export.begin"} <= named
    assert len(SCREENS_BY_NAME) == 8
    avoided = {"ctrl+a", "ctrl+b", "ctrl+s", "ctrl+j", "ctrl+o"}
    assert not avoided & {key for binding in all_bindings() for key in binding.key.split(",")}


def test_jump_goes_to_a_part_by_its_letter() -> None:
    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=(120, 36)) as pilot:
            await pilot.press("f")
            await until(pilot, lambda: isinstance(app.screen, JumpScreen), "jump mode")
            assert isinstance(app.screen, JumpScreen) and list(app.screen.places) == ["a", "s"]
            await pilot.press("s")
            await until(
                pilot, lambda: app.focused is not None and app.focused.id == "before", "the second part"
            )

    anyio.run(look)


@pytest.mark.parametrize("size", SIZES)
def test_how_the_doctor_and_the_settings_look(
    size: tuple[int, int], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = {"python": "3.11.7", "home": Path("/home/anna/.whet")}
    report = report_of(machine(gpu()), Surroundings()).model_copy(update=frozen)
    monkeypatch.setattr(api, "doctor", lambda progress=None: report)
    monkeypatch.setattr(api, "environment_flags", list)
    monkeypatch.setattr(kept, "kept_file", lambda: Path("/home/anna/.whet/tui.json"))

    async def look() -> None:
        app = WhetApp()
        async with app.run_test(size=size) as pilot:
            app.open("doctor")
            await until_shown(pilot, "nothing wrong found")
            await until_shown(pilot, "esc back")
            await until_shown(pilot, "╺")
            await same_as_committed(app, "doctor")
            app.open("settings")
            await until_shown(pilot, "a ASCII")
            await same_as_committed(app, "settings")

    anyio.run(look)
