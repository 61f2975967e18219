"""`rewards`: a recipe's rewards on answers that are there already."""

from __future__ import annotations

from pathlib import Path

import click

from whet.engine import api

from .common import json_option, print_data, print_json, recipe_arguments, talk


@click.command()
@recipe_arguments
@click.option("--data", "source", required=True, help="Rows with `completion` and the rewards' columns.")
@click.option("--rows", type=click.IntRange(min=1), default=64, show_default=True, help="How many to score.")
@json_option
def rewards(recipe: str, overrides: tuple[str, ...], source: str, rows: int, as_json: bool) -> None:
    """Score answers in a file with the rewards of RECIPE (method.kind=grpo). Trains nothing, takes no GPU."""
    wanted = api.recipe(recipe, overrides)
    console = talk()
    with console.status("scoring"):
        trial = api.try_rewards(wanted, source, rows, Path.cwd())
    for warning in trial.warnings:
        console.print(f"warning: {api.printable(warning)}", soft_wrap=True)
    if as_json:
        print_json(trial)
    else:
        from ..render.rewards import reward_trial

        print_data(reward_trial(trial))
