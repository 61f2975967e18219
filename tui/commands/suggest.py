"""`suggest`: from data and a wish to a whole recipe with the reason of each value."""

from __future__ import annotations

from pathlib import Path

import click

from whet.engine import api

from ..render.text import printable
from .common import EXIT_BLOCKED, json_option, print_data, print_json, talk


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--model", help="Folder or hub id; by default whet chooses what fits.")
@click.option("--eval", "eval_data", metavar="SOURCE", help="Held-out rows; by default some of DATA.")
@click.option(
    "--goal", type=click.Choice(["quality", "speed", "memory"]), default="quality", show_default=True
)
@click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), help="Training time.")
@click.option("--max-memory", type=click.FloatRange(min=0, min_open=True), metavar="GIB", help="GPU memory.")
@click.option("--gguf", "types", multiple=True, metavar="TYPE", help="GGUF types; by default q4_k_m.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting that stands.")
@click.option("-o", "--write", "out", type=click.Path(path_type=Path), help="Write the recipe here.")
@json_option
def suggest(
    data: tuple[str, ...],
    model: str | None,
    eval_data: str | None,
    goal: str,
    max_minutes: float | None,
    max_memory: float | None,
    types: tuple[str, ...],
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> int:
    """A whole recipe for DATA (files, folders, hub ids) on this machine, each value with its reason.

    Nothing is started. Without -o the recipe is printed, which a shell can send to a file.
    """
    wanted = api.Goal.model_validate(
        {
            "data": data[0] if len(data) == 1 else list(data),
            "model": model,
            "eval_data": eval_data,
            "priority": goal,
            "max_minutes": max_minutes,
            "max_memory_gib": max_memory,
            "export": list(types) or None,
            "overrides": dict(api.parse_override(text) for text in overrides),
        }
    )
    with talk().status("reading") as status:
        found = api.propose(wanted, lambda rows: status.update(f"reading: {rows:,} rows"))
    written = api.write_recipe(found.to_yaml(), out) if out is not None else None
    if as_json:
        document = found.model_dump(mode="json")
        print_json({**document, "yaml": found.to_yaml(), "written": str(written) if written else None})
    else:
        from ..render.proposal import proposal_details

        if written is None:
            click.echo(printable(found.to_yaml()), nl=False)
            talk().print(proposal_details(found, None), soft_wrap=True)
        else:
            print_data(proposal_details(found, written))
    return EXIT_BLOCKED if found.plan.blocked() else 0
