"""`plan`, `recipes`, `schema`, `data`: look before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from whet.engine import api

from .common import EXIT_BLOCKED, EXIT_FAILED, json_option, print_data, print_json, recipe_arguments, talk


def make_plan(recipe: str, overrides: Sequence[str], console: Console) -> api.Plan:
    """Read, validate and plan a recipe, with a counter while rows are read on a terminal."""
    wanted = api.recipe(recipe, overrides)
    with console.status("planning") as status:
        return api.plan(
            wanted, overrides, progress=lambda rows: status.update(f"planning: {rows:,} rows read")
        )


@click.command()
@recipe_arguments
@json_option
def plan(recipe: str, overrides: tuple[str, ...], as_json: bool) -> int:
    """What RECIPE would do: resolved settings, memory, steps, time, findings. Starts nothing."""
    made = make_plan(recipe, overrides, talk())
    if as_json:
        print_json(made)
    else:
        from ..render.plan import plan_details

        print_data(plan_details(made))
    return EXIT_BLOCKED if made.blocked() else 0


@click.command()
@click.option("--copy", "name", help="Copy this shipped recipe.")
@click.option("--to", type=click.Path(path_type=Path), default=Path("."), help="Folder or file to copy to.")
@json_option
def recipes(name: str | None, to: Path, as_json: bool) -> None:
    """List the shipped recipes, or copy one to start from."""
    if name is not None:
        target = api.copy_recipe(name, to)
        if as_json:
            print_json({"path": str(target)})
        else:
            talk().print(f"{target}   Edit it, then: whet plan {target}", soft_wrap=True)
        return
    about = {name: api.about_recipe(name) for name in api.shipped()}
    if as_json:
        print_json(about)
    else:
        from ..render.facts import facts

        print_data(facts(about.items()))


@click.command()
@json_option
def schema(as_json: bool) -> None:
    """JSON Schema of recipes, for editors and agents (--json prints it on one line)."""
    import json

    found = api.schema()
    click.echo(json.dumps(found) if as_json else json.dumps(found, indent=2))


@click.command()
@click.argument("source")
@click.option(
    "--format", "data_format", default="auto", help="Instead of looking: text, alpaca, sharegpt, ..."
)
@click.option("--column", "columns", multiple=True, metavar="FIELD=COLUMN", help="Rename a column.")
@click.option("--model", "model_name", default="demo", show_default=True, help="Whose tokenizer counts.")
@click.option("--template", help="Chat template by name; by default the model's own.")
@click.option("--method", help="Read the rows for this method.kind; by default what they look made for.")
@click.option("--max-length", type=click.IntRange(min=1), default=2048, show_default=True)
@json_option
def data(
    source: str,
    data_format: str,
    columns: tuple[str, ...],
    model_name: str,
    template: str | None,
    method: str | None,
    max_length: int,
    as_json: bool,
) -> int:
    """Read every row of SOURCE (file, folder, hub id): layout, methods that read it, lengths, supervision,
    bad rows by line."""
    values: dict[str, Any] = {
        "model": {"name": model_name, "max_length": max_length},
        "data": {
            "train": source,
            "format": data_format,
            "columns": dict(_renamed(column) for column in columns),
            "template": template,
            "bad_rows": "skip",
        },
    }
    console = talk()
    uses = api.row_uses(values)
    if method is not None:
        values["method"] = {"kind": method}
    elif data_format != "auto":
        values["method"] = {"kind": "sft"}
    with console.status("reading") as status:
        report = api.inspect_data(values, progress=lambda rows: status.update(f"reading: {rows:,} rows"))
    if as_json:
        document = report.model_dump(mode="json")
        print_json({**document, "uses": [use.model_dump(mode="json") for use in uses]})
    else:
        from ..render.data import data_report

        print_data(data_report(report, uses))
    return EXIT_FAILED if report.train.rows == 0 else 0


def _renamed(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not (field and equals and column):
        raise click.BadParameter(f"{text!r} is not FIELD=COLUMN.", param_hint="--column")
    return field, column
