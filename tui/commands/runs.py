"""`runs`, `show`, `stop`: what there is, what happened, end it."""

from __future__ import annotations

import click

from whet.engine import api

from .common import json_option, print_data, print_json, run_argument, talk
from .remote import list_remote


@click.command()
@click.argument("where", required=False, metavar="[ssh://HOST]")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Show the newest N.")
@json_option
def runs(where: str | None, limit: int, as_json: bool) -> None:
    """List runs, newest first: those of this machine, or of another through ssh."""
    if where is not None:
        list_remote(where, limit, as_json)
        return
    found = api.runs()
    if as_json:
        print_json(found[:limit])
    elif not found:
        talk().print("No runs yet. Start one: whet demo")
    else:
        from ..render.runs import run_table

        print_data(run_table(found[:limit]))
        if len(found) > limit:
            talk().print(f"{len(found) - limit} older: whet runs --limit {len(found)}")


@click.command()
@run_argument
@click.option(
    "--log",
    "log_lines",
    type=click.IntRange(min=0),
    default=0,
    help="Also the last N lines of the worker's log.",
)
@json_option
def show(run: str, log_lines: int, as_json: bool) -> None:
    """Show RUN: state, settings, losses, findings, samples, files."""
    view = api.run(run)
    log = api.find(run).log_tail(log_lines) if log_lines else []
    if as_json:
        print_json(view.model_dump(mode="json") | {"log": log})
        return
    from ..render.outcome import run_details
    from ..render.text import printable

    print_data(run_details(view))
    for line in log:
        click.echo(printable(line))


@click.command()
@run_argument
@click.option("--now", is_flag=True, help="At once, without a checkpoint of the current step.")
@json_option
def stop(run: str, now: bool, as_json: bool) -> None:
    """Finish the step, checkpoint, and end RUN; it can be resumed."""
    found = api.find(run)
    run_id = found.id
    asked = api.stop(run_id, now=now)
    if as_json:
        print_json({"id": run_id, "requested": asked})
    else:
        gently = "soon, to start over" if found.read_state().is_job else "after this step, with a checkpoint"
        how = "at once" if asked == "now" else gently
        talk().print(f"{run_id} ends {how}.\n  go on  whet resume {run_id}", soft_wrap=True)
