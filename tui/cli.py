"""The headless door: `whet VERB`. Data on stdout, talk on stderr, and no import of the TUI.

Exit codes: 0 done · 1 failed, with the reason · 2 wrong usage · 3 the export's proof failed ·
4 findings block the start · 5 the run was stopped or interrupted and can be resumed ·
130 Ctrl-C (a run that was followed goes on).
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from whet.engine.errors import WhetError
from whet.engine.importing import importing
from whet.engine.printable import printable

# Verb -> its module and its line in the list of verbs: listing imports none of them.
GROUPS = {
    "Run": {
        "demo": ("train", "The whole path on a tiny model, no GPU needed."),
        "train": ("train", "Plan RECIPE, start it, follow it; it outlives this terminal."),
        "attach": ("train", "Follow a run again, from its first event on."),
        "resume": ("train", "Go on from a run's last finished checkpoint."),
        "runs": ("runs", "List runs, newest first."),
        "show": ("runs", "One run: state, losses, findings, answers, files."),
        "stop": ("runs", "Checkpoint and end a run; it can be resumed."),
    },
    "Look": {
        "suggest": ("suggest", "A whole recipe for DATA, each value with its reason."),
        "plan": ("look", "What RECIPE would do: memory, steps, time, findings."),
        "fix": ("fix", "Findings' patches on a copy of a recipe, planned again."),
        "explain": ("fix", "What a finding's id means and what helps."),
        "recipes": ("look", "List the shipped recipes, or copy one to start from."),
        "schema": ("look", "JSON Schema of recipes, for editors and agents."),
        "data": ("look", "Read every row of SOURCE: format, lengths, bad rows."),
        "template": ("template", "Rows as the model's tokens, marked and checked."),
        "rewards": ("rewards", "Score answers in a file with a recipe's rewards."),
        "doctor": ("doctor", "This machine: GPU, memory, versions, what is wrong."),
    },
    "Ship": {
        "eval": ("ship", "Base beside tuned: held-out loss, metrics, answers."),
        "export": ("ship", "Merge, convert to GGUF, quantise, and prove the files."),
        "smoke": ("ship", "Prove a GGUF against the model it came from."),
        "chat": ("ship", "Talk to a run, a model folder or a GGUF file."),
        "push": ("push", "Upload a part of a run's export, with its model card."),
    },
}
VERBS = {verb: module for group in GROUPS.values() for verb, (module, _) in group.items()}


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

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb. A reader that goes away, as `| head` does, is no failure (click would exit 1)."""
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return code

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for name, verbs in GROUPS.items():
            with formatter.section(name):
                formatter.write_dl(
                    [(verb.ljust(8), words) for verb, (_, words) in verbs.items()], col_spacing=4
                )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from difflib import get_close_matches

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = get_close_matches(args[0], list(VERBS), n=1)
            ctx.fail(f"No verb {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="whet")
@click.pass_context
def cli(context: click.Context) -> None:
    """Fine-tune language models, find what goes wrong, export to GGUF and prove the export.

    \b
    whet demo                      see the whole path in a minute or two
    whet recipes --copy demo       a recipe to start from
    whet plan demo.yaml            what would happen
    whet train demo.yaml training.max_steps=30

    \b
    Every verb takes --json. Completion for bash (zsh_source, fish_source too):
    eval "$(_WHET_COMPLETE=bash_source whet)"
    """
    if context.invoked_subcommand is not None:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        click.echo(context.get_help())
        return
    with importing():
        from .app import main as open_app

    open_app()


def main(args: Sequence[str] | None = None) -> None:
    """Console entry point; leaves by SystemExit with one of the exit codes above."""
    words = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a stream a test or an embedder put there may be of another kind
            reconfigure(errors="backslashreplace")
    try:
        sys.exit(cli.main(words, prog_name="whet", standalone_mode=False))
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        _report_usage(error, words)
        sys.exit(error.exit_code)
    except WhetError as error:
        _report(error, words)
        sys.exit(1)
    except OSError as error:
        hint = "Check the permissions and the free space there; WHET_HOME says where whet keeps its files."
        _report(WhetError("os", str(error), hint), words)
        sys.exit(1)


def _report_usage(error: click.ClickException, words: list[str]) -> None:
    if "--json" not in words:
        said = io.StringIO()
        error.show(said)
        click.echo(printable(said.getvalue()), nl=False, err=True)  # words of the call stand in it
        return
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "whet"
    print(json.dumps({"error": WhetError("usage", error.format_message(), f"{command} -h").as_dict()}))


def _report(error: WhetError, words: list[str]) -> None:
    if "--json" in words:
        print(json.dumps({"error": error.as_dict()}))
        return
    from .commands.common import talk
    from .render.findings import print_error

    print_error(talk(), error)
