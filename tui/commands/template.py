"""`template`: rows as the model's tokens, and a template against data, GGUF and Modelfile."""

from __future__ import annotations

from pathlib import Path

import click

from whet.engine import api

from .common import EXIT_FAILED, PlainConsole, json_option, print_data, print_json, talk

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("model", required=False)
@click.argument("source", metavar="[DATA]", required=False)
@click.option("--list", "show_list", is_flag=True, help="The chat templates whet knows by name.")
@click.option("--template", help="Use this template instead of the model's own.")
@click.option("--rows", type=click.IntRange(min=1), default=2, show_default=True, help="Rows to show.")
@click.option("--max-length", type=click.IntRange(min=8), help="Cut rows at so many tokens.")
@click.option("--gguf", type=FILE, help="Compare with the template and tokenizer in this GGUF.")
@click.option("--modelfile", type=FILE, help="Compare with this Ollama Modelfile.")
@json_option
def template(
    model: str | None,
    source: str | None,
    show_list: bool,
    template: str | None,
    rows: int,
    max_length: int | None,
    gguf: Path | None,
    modelfile: Path | None,
    as_json: bool,
) -> int:
    """Render rows of DATA as MODEL's tokens, supervised and special ones marked; check every row.

    Names the family that template and data really belong to, and lists the findings on them. Exits with 1
    where one is an error.
    """
    if show_list:
        return _list(as_json)
    if model is None or source is None:
        raise click.UsageError("Give MODEL and DATA, or --list.")
    limit = {} if max_length is None else {"max_length": max_length}
    values = {
        "model": {"name": model, **limit},
        "data": {"train": source, "template": template, "bad_rows": "skip"},
    }
    with talk().status("reading") as status:
        view = api.template_view(
            values, rows, gguf, modelfile, lambda read: status.update(f"reading: {read:,} rows")
        )
    if as_json:
        print_json(view)
    else:
        from ..render.template import template_details

        console = PlainConsole()
        print_data(template_details(view, colour=console.is_terminal and not console.no_color))
    return EXIT_FAILED if any(finding.severity == "error" for finding in view.findings) else 0


def _list(as_json: bool) -> int:
    known = api.chat_templates()
    if as_json:
        print_json(known)
    else:
        from ..render.facts import facts

        print_data(facts(known.items()))
    return 0
