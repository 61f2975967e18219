"""`demo`, `train`, `attach`, `resume`: start a run or come back to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import click

from whet.engine import api

from .common import (
    EXIT_BLOCKED,
    follow_and_report,
    json_option,
    print_json,
    recipe_arguments,
    run_argument,
    say_followed,
    say_prepared,
    say_started,
    talk,
)
from .look import make_plan
from .remote import follow_remote

Then = Literal["follow", "detach", "prepare"]


@click.command()
@recipe_arguments
@click.option("--detach", is_flag=True, help="Start it and return.")
@click.option(
    "--no-start", is_flag=True, help="Make it, print its folder; torchrun, srun or a job starts it."
)
@click.option("--trust-remote-code", is_flag=True, help="Let the model's own Python code run, as it is now.")
@json_option
def train(
    recipe: str,
    overrides: tuple[str, ...],
    detach: bool,
    no_start: bool,
    trust_remote_code: bool,
    as_json: bool,
) -> int:
    """Plan RECIPE, start it, and follow it. It outlives this terminal; Ctrl-C only detaches."""
    if detach and no_start:
        raise click.UsageError("--detach starts the run, --no-start does not: give one of them.")
    then: Then = "prepare" if no_start else "detach" if detach else "follow"
    return _train(recipe, overrides, then, as_json, trust_remote_code)


@click.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@json_option
def demo(overrides: tuple[str, ...], as_json: bool) -> int:
    """The whole path on a tiny model: plan, train, compare, merge, GGUF, proof. No GPU, no internet."""
    return _train("demo", overrides, "follow", as_json)


@click.command()
@run_argument
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only events with a higher `seq`.")
@json_option
def attach(run: str, after: int, as_json: bool) -> int:
    """Follow RUN from its first event on: an id, its beginning, `last`, or ssh://[user@]host[:port]/RUN.

    Through ssh it is the same, on the machine where the run is. Where whet is not on the PATH there, or
    WHET_HOME is another: ssh://host/RUN?whet=/path/to/whet&home=/path/to/home
    """
    if api.is_remote(run):
        return follow_remote(run, as_json, after)
    run_id = api.find(run).id
    if as_json:
        say_followed(run_id, as_json)
    return follow_and_report(run_id, as_json, after=after)


@click.command()
@run_argument
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--detach", is_flag=True, help="Start it and return.")
@json_option
def resume(run: str, overrides: tuple[str, ...], detach: bool, as_json: bool) -> int:
    """Go on with RUN from its last finished checkpoint; the loss curve is the uninterrupted one's.

    Overrides may change training.*, eval.*, sampling.* and export.*, e.g. training.max_steps=500.
    """
    found = api.find(run)
    seen = found.events.stat().st_size if found.events.exists() else 0
    run_id = api.resume(found.id, overrides)
    if detach:
        say_started(run_id, as_json)
        return 0
    return follow_and_report(run_id, as_json, offset=seen)


def _train(
    recipe: str, overrides: Sequence[str], then: Then, as_json: bool, trust_remote_code: bool = False
) -> int:
    from ..render.plan import plan_summary

    console = talk()
    agreed = make_plan(recipe, overrides, console)
    if not as_json:
        console.print(plan_summary(agreed))
    if agreed.blocked():
        if as_json:
            ids = sorted({finding.id for finding in agreed.blocked()})
            error = api.WhetError("plan.blocked", f"Findings block the start: {', '.join(ids)}.")
            print_json({"error": error.as_dict(), "findings": agreed.blocked()})
        else:
            console.print("Not started: apply the fixes above, or accept=[ID] what you accept.")
        return EXIT_BLOCKED
    code = api.model_code(agreed) if trust_remote_code else None
    if code is not None and not as_json:
        console.print(f"Runs the code of {code}.")
    allowed = frozenset() if code is None else frozenset({code})
    if then == "prepare":
        say_prepared(api.prepare(agreed, started_by="cli", remote_code=allowed), as_json)
        return 0
    run_id = api.start(agreed, started_by="cli", remote_code=allowed)
    if then == "detach":
        say_started(run_id, as_json)
        return 0
    say_followed(run_id, as_json)
    return follow_and_report(run_id, as_json)
