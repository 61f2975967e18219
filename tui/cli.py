"""The headless door: `whet VERB`. Data on stdout, talk on stderr, and no import of the TUI.

Exit codes: 0 done · 1 failed, with the reason · 2 wrong usage · 3 the export's proof failed ·
4 findings block the start · 5 the run was stopped or interrupted and can be resumed.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

import click

from whet.engine.errors import WhetError

VERBS = {
    "demo": "train",
    "train": "train",
    "attach": "train",
    "resume": "train",
    "runs": "runs",
    "show": "runs",
    "stop": "runs",
    "plan": "look",
    "recipes": "look",
    "schema": "look",
    "data": "look",
    "template": "look",
    "doctor": "look",
    "export": "ship",
    "smoke": "ship",
    "chat": "ship",
}


class LazyGroup(click.Group):
    """Imports a verb's module when the verb is used, so that `whet runs` does not pay for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = getattr(import_module(f".commands.{VERBS[cmd_name]}", __package__), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from difflib import get_close_matches

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = get_close_matches(args[0], list(VERBS), n=1)
            ctx.fail(f"No verb {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="whet")
def cli() -> None:
    """Fine-tune language models, find what goes wrong, export to GGUF and prove the export.

    \b
    whet demo                      the whole path on a tiny model, no GPU needed
    whet recipes --copy demo       a recipe to start from
    whet plan my.yaml              what would happen: memory, time, findings
    whet train my.yaml key=value   run it; it outlives this terminal

    Every verb takes --json. Shell completion: eval "$(_WHET_COMPLETE=bash_source whet)"
    (zsh_source, fish_source).
    """


def main() -> None:
    """Console entry point."""
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except WhetError as error:
        _report(error)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        sys.exit(0)


def _report(error: WhetError) -> None:
    from rich.console import Console

    from .render.findings import print_error

    if "--json" in sys.argv:
        print(json.dumps({"error": error.as_dict()}))
    else:
        print_error(Console(stderr=True), error)
