"""`fix`, `explain`: apply what findings propose to a copy of the recipe; say what an id means."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from whet.engine import api

from .common import EXIT_BLOCKED, json_option, print_data, print_json, talk


@click.command()
@click.argument("target", metavar="RUN|RECIPE")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("-o", "--write", "out", type=click.Path(path_type=Path), help="Write the patched recipe here.")
@click.option("--in-place", is_flag=True, help="Change the recipe file itself.")
@json_option
def fix(target: str, ids: tuple[str, ...], out: Path | None, in_place: bool, as_json: bool) -> int:
    """Apply findings' patches to a copy of the recipe, show the diff, and plan it again.

    Without ID: the patches of all errors and warnings. Notes, and patches that merely accept a finding, are
    applied by their id. Commands in fixes are shown, never run.
    """
    if in_place and out is not None:
        raise click.UsageError("--in-place and --write name two places; keep one.")
    console = talk()
    with console.status("planning") as status:
        fixed = api.fix(target, ids, lambda rows: status.update(f"planning: {rows:,} rows read"))
    written = _write(fixed, out, in_place)
    if as_json:
        print_json(_document(fixed, written))
    else:
        from ..render.fixes import fixed_details

        print_data(fixed_details(fixed, written))
    return EXIT_BLOCKED if fixed.plan.blocked() else 0


def _write(fixed: api.Fixed, out: Path | None, in_place: bool) -> Path | None:
    if in_place and fixed.source is None:
        raise api.WhetError(
            "fix.no_file",
            f"{fixed.name} is no recipe file of yours, so nothing is changed in place.",
            "Write the patched recipe to a file of its own: -o FILE",
        )
    if in_place and fixed.source is not None:
        return api.write_recipe(fixed.proposal.text, fixed.source, overwrite=True)
    return api.write_recipe(fixed.proposal.text, out) if out is not None else None


def _document(fixed: api.Fixed, written: Path | None) -> dict[str, object]:
    proposal = fixed.proposal.model_dump(mode="json")
    recipe = proposal.pop("text")
    return {
        **proposal,
        "recipe": recipe,
        "left": [finding.model_dump(mode="json") for finding in fixed.left],
        "blocked": [finding.id for finding in fixed.plan.blocked()],
        "plan": fixed.plan.id,
        "written": str(written) if written else None,
    }


@click.command()
@click.argument("id", required=False)
@json_option
def explain(id: str | None, as_json: bool) -> None:
    """What a finding's ID means: symptom, how it is seen, why, what helps. Without ID: all of them."""
    if id is None:
        entries = api.catalogue()
        if as_json:
            print_json({key: entry.title for key, entry in entries.items()})
        else:
            from ..render.facts import facts

            print_data(facts((key, entry.title) for key, entry in entries.items()))
        return
    entry = api.explain(id)
    if as_json:
        print_json(asdict(entry))
    else:
        from ..render.fixes import entry_details

        print_data(entry_details(entry))
