"""What the verbs share: --json, the talking console, following a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click
from pydantic import BaseModel
from rich.console import Console

from whet.engine import api

EXIT_FAILED, EXIT_PROOF_FAILED, EXIT_BLOCKED, EXIT_RESUMABLE = 1, 3, 4, 5

Function = TypeVar("Function", bound=Callable[..., Any])


def json_option(function: Function) -> Function:
    """The ``--json`` flag every verb has."""
    return click.option("--json", "as_json", is_flag=True, help="Data as JSON on stdout.")(function)


def talk() -> Console:
    """The console for talk: stderr, so that stdout holds data alone."""
    return Console(stderr=True, highlight=False)


def data_out() -> Console:
    """The console for human-readable data on stdout."""
    return Console(highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on one line of stdout; pydantic models anywhere inside are dumped."""
    click.echo(json.dumps(value, default=_dump, ensure_ascii=False))


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


def follow(run: str, as_json: bool, offset: int = 0) -> int:
    """Show a run's events until it ends; returns the exit code. Ctrl-C detaches and leaves it running."""
    from ..render.progress import Follower

    console = talk()
    try:
        if as_json:
            for event in api.follow(run, offset):
                click.echo(event.model_dump_json())
        else:
            with Follower(console) as follower:
                for event in api.follow(run, offset):
                    follower.show(event)
    except KeyboardInterrupt:
        console.print(f"\nDetached. {run} goes on.  Back: whet attach {run}   Stop: whet stop {run}")
        return 0
    return _exit_code(run, console)


def _exit_code(run: str, console: Console) -> int:
    view = api.run(run)
    if view.status == "finished":
        return EXIT_PROOF_FAILED if view.verdict == "fail" else 0
    if view.status in ("stopped", "interrupted"):
        console.print(f"{run} is {view.status}. Go on with: whet resume {run}")
        return EXIT_RESUMABLE
    return EXIT_FAILED
