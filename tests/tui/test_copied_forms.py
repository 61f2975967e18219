"""What `y` copies works as it stands: commands, recipes, Python, calls of whet-mcp's tools."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import click
import pytest
from support.fake_runs import SOURCE
from support.plan_inputs import write_chats
from support.tiny_runs import create_run, tiny_recipe
from support.tool_calls import Caller, parsed

from whet.engine import api
from whet.engine.demo import MODEL_DIR
from whet.engine.runs.store import RunDir
from whet.tui.actions import Action, chat_action, export_action
from whet.tui.app import WhetApp
from whet.tui.cli import cli
from whet.tui.screens.base import WhetScreen
from whet.tui.screens.new_run.advice import actions_of
from whet.tui.screens.new_run.draft import Draft
from whet.tui.screens.new_run.messages import Situation
from whet.tui.screens.run.asking import run_actions
from whet.tui.screens.run.look import look

READS = {"job_list", "run_get", "run_diagnose", "job_wait", "env_inspect", "plan_create"}
"""Tools that start nothing: they are called; of the others the arguments are checked."""

RECIPE = "model: {name: demo}\ndata: {train: demo}\n"
START = "from whet.tui.cli import main; main()"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHET_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    made = create_run(tiny_recipe(Path(MODEL_DIR), write_chats(tmp_path / "rows.jsonl", 120)))
    made.write_state(status="finished")
    return made


def commands(text: str) -> Iterator[list[str]]:
    """Commands of a shell text, without the file that is written before."""
    script = text.rpartition("END\n")[2]
    yield from (shlex.split(line) for line in script.splitlines())


def parses(words: list[str]) -> None:
    """The command line takes it: verb, arguments, options."""
    assert words[0] == "whet"
    verb = cli.get_command(click.Context(cli), words[1])
    assert verb is not None, words
    verb.make_context(words[1], words[2:])


def hold(actions: list[Action], caller: Caller) -> None:
    """Each form of each action."""
    assert actions
    for action in actions:
        for name, text in action.forms().items():
            if name == "CLI":
                for words in commands(text):
                    parses(words)
            elif name == "YAML":
                whole = text if "model:" in text else f"{RECIPE}{text}"
                api.recipe_from_text(whole)
            elif name == "Python":
                compile(text, action.label, "exec")
                names = {
                    word.split("(")[0] for word in text.replace("api.", " api.").split() if "api." in word
                }
                assert all(getattr(api, one.split(".")[1].rstrip(".")) for one in names), names
            else:
                first = text.splitlines()[0]
                tool, arguments = parsed(first)
                assert set(arguments) <= caller.known[tool], first
                if tool in READS:
                    caller.follow(first)


def test_a_runs_forms(run: RunDir, tmp_path: Path) -> None:
    caller = Caller(tmp_path, "auto")
    actions = run_actions(run.id, look(run.id, 0), None, RECIPE)
    labels = [one.label for one in actions]
    assert labels == ["look at the run", "talk to it", "export", "measure base and tuned"]
    hold(actions, caller)
    assert api.recipe_from_text(actions[0].yaml).model.name == "demo"
    scope: dict[str, Any] = {}
    exec(actions[0].forms()["Python"].replace("api.run(", "seen = api.run("), scope)
    assert scope["seen"].id == run.id


def test_the_forms_of_every_screen(run: RunDir, tmp_path: Path) -> None:
    caller = Caller(tmp_path, "auto")
    seen: dict[str, list[Action]] = {}

    async def look() -> None:
        app = WhetApp()
        async with app.run_test() as pilot:
            for name, arguments in (
                ("", ()),
                ("run", (run.id,)),
                ("compare", ([run.id],)),
                ("export", (run.id,)),
                ("doctor", ()),
                ("help", ()),
            ):
                if name:
                    app.open(name, *arguments)
                    await pilot.pause()
                screen = next(one for one in reversed(app.screen_stack) if isinstance(one, WhetScreen))
                seen[name or "home"] = list(screen.actions())

    anyio.run(look)
    for actions in seen.values():
        hold(actions, caller)


def test_the_forms_of_a_new_run(run: RunDir, tmp_path: Path) -> None:
    data = write_chats(tmp_path / "it's mine.jsonl", 120)
    draft = Draft.of(f'name: mine\nmodel: {{name: demo}}\ndata:\n  train: "{data}"\nadapter: {{rank: 4}}\n')
    start, plan = actions_of(Situation(draft), "mine.yaml")
    caller = Caller(tmp_path, "auto")
    hold([start, plan], caller)
    assert api.recipe_from_text(start.yaml).adapter.rank == 4
    assert caller.follow(plan.mcp)["plan_id"]
    scope: dict[str, Any] = {}
    exec(plan.forms()["Python"], scope)
    assert scope["plan"].recipe.data.train == str(data)
    told = shell(plan.cli, tmp_path)
    assert "120 rows" in told


def test_names_with_spaces_and_quotes_stay_one_argument(run: RunDir, tmp_path: Path) -> None:
    folder = tmp_path / "a model's folder"
    folder.mkdir()
    action = chat_action(str(folder), 'Say "hi"')
    (words,) = commands(action.cli)
    assert words[2:] == [str(folder), "--prompt", 'Say "hi"']
    hold([action], Caller(tmp_path, "auto"))
    export = export_action(run.id, ["q4_k_m", "fp8", "f16"], True)
    section = api.recipe_from_text(f"{RECIPE}{export.yaml}").export
    assert section.merged and section.fp8 and section.gguf == ["q4_k_m", "f16"]


def shell(text: str, folder: Path) -> str:
    """Run it as it would be pasted."""
    program = folder / "bin" / "whet"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -c "{START}" "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr
