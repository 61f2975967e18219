"""What the verbs share: --json, the talking console, following a run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click
from pydantic import BaseModel
from rich.console import Console, Group, RenderableType
from rich.text import Text

from whet.engine import api

from ..render.text import escaped

EXIT_FAILED, EXIT_PROOF_FAILED, EXIT_BLOCKED, EXIT_RESUMABLE, EXIT_INTERRUPT = 1, 3, 4, 5, 130
PIPED_WIDTH = 160  # columns of tables that no terminal limits

Function = TypeVar("Function", bound=Callable[..., Any])


def json_option(function: Function) -> Function:
    """The ``--json`` flag every verb has."""
    return click.option("--json", "as_json", is_flag=True, help="Data as JSON on stdout.")(function)


class PlainConsole(Console):
    """Text is text: no markup, no emoji codes, no guessing at numbers; and a gone reader is an error."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = PIPED_WIDTH

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def talk() -> PlainConsole:
    """The console for talk: stderr, so that stdout holds data alone."""
    return PlainConsole(stderr=True)


def print_data(data: RenderableType) -> None:
    """Human-readable data on stdout; without a terminal, text is not wrapped and lines carry no padding."""
    console = PlainConsole()
    if console.is_terminal:
        console.print(data)
        return
    with console.capture() as capture:
        for part in data.renderables if isinstance(data, Group) else [data]:
            console.print(part, soft_wrap=isinstance(part, str | Text))
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def print_event(event: BaseModel) -> None:
    """An event, or what stands beside events, on one line of stdout."""
    click.echo(escaped(event.model_dump_json()))


def print_json(value: Any) -> None:
    """One JSON document on one line of stdout; pydantic models anywhere inside are dumped."""
    click.echo(escaped(json.dumps(value, default=_dump, ensure_ascii=False)))


def _dump(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def complete_run(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion of run ids."""
    return [run.id for run in api.runs() if run.id.startswith(incomplete)]


def complete_recipe(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    """Shell completion of recipes: the shipped names, then files."""
    from click.shell_completion import CompletionItem

    names = [CompletionItem(name) for name in api.shipped() if name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


def run_argument(function: Function) -> Function:
    """A RUN argument: an id, a unique part of its beginning, or `last`."""
    return click.argument("run", shell_complete=complete_run, default="last")(function)


def recipe_arguments(function: Function) -> Function:
    """RECIPE and any number of KEY=VALUE overrides."""
    function = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(function)
    return click.argument("recipe", shell_complete=complete_recipe)(function)


def follow(run: str, as_json: bool, offset: int = 0, after: int = 0) -> int:
    """Show a run's events from byte ``offset`` on, those above number ``after``, until it ends.

    Returns the exit code. Ctrl-C detaches and leaves it running.
    """
    from ..render.progress import Follower

    console = talk()
    events = (event for event in api.follow(run, offset) if event.seq > after or not after)
    try:
        if as_json:
            for event in events:
                print_event(event)
        else:
            with Follower(console) as follower:
                for event in events:
                    follower.show(event)
    except KeyboardInterrupt:
        console.print(f"\nDetached; {run} goes on.", soft_wrap=True)
        console.print(f"  back  whet attach {run}\n  stop  whet stop {run}", soft_wrap=True)
        return EXIT_INTERRUPT
    view = api.run(run)
    code = _exit_code(view)
    if as_json:
        print_json({"type": "end", "id": run, "status": view.status, "verdict": view.verdict, "exit": code})
    elif view.status in ("stopped", "interrupted", "failed"):
        where = "" if view.state.is_job else f" at step {view.state.step}"
        console.print(f"{run} is {view.status}{where}.", soft_wrap=True)
        if view.status != "stopped":
            console.print(f"  why    whet show {run} --log 40", soft_wrap=True)
        console.print(f"  go on  whet resume {run}", soft_wrap=True)
    return code


def follow_and_report(run_id: str, as_json: bool, offset: int = 0, after: int = 0) -> int:
    """Follow a run, and show what came of it when it finished; returns the exit code."""
    from ..render.outcome import outcome

    code = follow(run_id, as_json, offset, after)
    view = api.run(run_id)
    if view.status == "finished" and not as_json:
        talk().print(outcome(view))
    return code


def say_followed(run_id: str, as_json: bool) -> None:
    """A run was started, and is followed from here on."""
    if as_json:
        print_json({"type": "run", "id": run_id, "path": str(api.find(run_id).path)})
    else:
        talk().print(f"\nrun {run_id}   Ctrl-C detaches, `whet stop` ends it", soft_wrap=True)


def say_started(run_id: str, as_json: bool) -> None:
    """A run was started, and goes on by itself."""
    if as_json:
        print_json({"type": "run", "id": run_id, "path": str(api.find(run_id).path)})
    else:
        talk().print(f"{run_id} runs by itself.", soft_wrap=True)
        talk().print(f"  follow  whet attach {run_id}\n  stop    whet stop {run_id}", soft_wrap=True)


def say_prepared(run_id: str, as_json: bool) -> None:
    """A run was made, and others start it: its folder is data."""
    path = api.find(run_id).path
    if as_json:
        print_json({"type": "run", "id": run_id, "path": str(path)})
        return
    click.echo(path)
    talk().print(f"{run_id} waits to be started.", soft_wrap=True)
    talk().print("  start  python -P -m whet.engine.runs.worker FOLDER, or as in docs/deploy", soft_wrap=True)


def _exit_code(view: api.RunView) -> int:
    if view.status == "finished":
        return EXIT_PROOF_FAILED if view.verdict == "fail" else 0
    return EXIT_RESUMABLE if view.status in ("stopped", "interrupted") else EXIT_FAILED
