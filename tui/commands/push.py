"""`push`: upload a part of a run's export."""

from __future__ import annotations

from typing import Literal, get_args

import click

from whet.engine import api

from .common import complete_run, json_option, print_event, print_json, talk

Part = Literal["gguf", "adapter", "adapter_gguf", "merged", "merged_4bit", "fp8"]


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.argument("repo", metavar="OWNER/NAME")
@click.option(
    "--what",
    type=click.Choice(get_args(Part)),
    default="gguf",
    show_default=True,
    help="GGUF files go up together, with Modelfile, verdicts and card.",
)
@click.option("--public", is_flag=True, help="For everybody to see; private otherwise.")
@click.option("--unproven", is_flag=True, help="Also files without a passing proof. They may be wrong.")
@json_option
def push(run: str, repo: str, what: Part, public: bool, unproven: bool, as_json: bool) -> None:
    """Upload a part of RUN's export to the model repository OWNER/NAME, with a model card.

    The token is HF_TOKEN's or that of `hf auth login`. Interrupted, the same command goes on from there.
    """
    from ..render.progress import Follower

    with Follower(talk()) as follower:

        def tell(event: api.Event) -> None:
            if as_json:
                print_event(event)
            else:
                follower.show(event)

        address = api.push(run, repo, what, private=not public, force=unproven, tell=tell)
    if as_json:
        print_json({"type": "end", "repo": repo, "address": address})
    else:
        click.echo(address)
