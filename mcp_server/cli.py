"""The operator's door: `whet-mcp`. What a server may do is said here and nowhere else.

On stdio, stdout carries the protocol and nothing else; talk goes to stderr.

Exit codes: 0 done · 1 failed, with the reason · 2 wrong usage · 130 Ctrl-C.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import click

from whet.engine.api import WhetError
from whet.engine.importing import importing

from .configurations import CLIENTS, called, started
from .options import BY_DEFAULT, TOOLSETS, Options
from .remote_code import read_remote_code

OBJECTS_BETWEEN_COLLECTIONS = 50_000

Value = TypeVar("Value")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _toolsets(context: click.Context, parameter: click.Parameter, text: str | None) -> frozenset[str]:
    if text is None:
        return BY_DEFAULT
    names = _names(text)
    for name in names:
        if name not in TOOLSETS:
            near = get_close_matches(name, TOOLSETS, n=1)
            lead = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(TOOLSETS)}."
            raise click.BadParameter(f"no tool set {name!r}. {lead}", context, parameter)
    if not names:
        raise click.BadParameter(f"names none of {', '.join(TOOLSETS)}.", context, parameter)
    return frozenset(names)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    default=".",
    help="The only folder tools read from and write to; default: the current one.",
)
@click.option("--read-only", is_flag=True, help="No tool that writes, whatever --toolsets says.")
@click.option(
    "--toolsets",
    callback=_toolsets,
    metavar="NAME[,NAME]",
    help=f"Of {', '.join(TOOLSETS)}; default: all but hub.",
)
@click.option(
    "--allow-remote-code",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Lines OWNER/NAME@COMMIT: models whose own Python code may run.",
)
@click.option("--allow-push", is_flag=True, help="hub_push goes ahead where no person can be asked.")
@click.option("--http", metavar="HOST:PORT", help="Serve over HTTP instead of stdio, with a bearer token.")
@click.option("--token-env", metavar="NAME", help="The variable that holds the token; NAME_EXPIRES its end.")
@click.option(
    "--allow-host",
    metavar="NAME[,NAME]",
    help="Host names that clients may call over HTTP besides loopback.",
)
@click.option("--self-test", is_flag=True, help="Start the server as a client would, and print what it sees.")
@click.option(
    "--print-config", type=click.Choice(list(CLIENTS)), help="What to paste into a client's configuration."
)
@click.version_option(package_name="whet")
@click.pass_context
def cli(
    context: click.Context,
    root: Path,
    read_only: bool,
    toolsets: frozenset[str],
    allow_remote_code: Path | None,
    allow_push: bool,
    http: str | None,
    token_env: str | None,
    allow_host: str | None,
    self_test: bool,
    print_config: str | None,
) -> None:
    """Let a coding agent fine-tune, diagnose and ship models through whet, by MCP.

    \b
    whet-mcp --self-test                       what a client would see
    whet-mcp --print-config claude-code        what to paste into its configuration
    """
    code = _usage(lambda: read_remote_code(allow_remote_code)) if allow_remote_code else frozenset[str]()
    options = Options(
        root=root,
        read_only=read_only,
        toolsets=toolsets,
        push_unasked=allow_push,
        remote_code=code,
    )
    if http is None and (token_env or allow_host):
        raise click.UsageError("--token-env and --allow-host belong to --http HOST:PORT.", context)
    if http is not None and self_test:
        raise click.UsageError("--self-test speaks stdio; leave --http out.", context)
    if http is not None and not token_env:
        raise click.UsageError("--http needs --token-env NAME: nothing is served without a token.", context)
    if print_config is not None:
        click.echo(_configuration(print_config, options, allow_remote_code, http, token_env), nl=False)
    elif self_test:
        _test(_command(options, allow_remote_code))
    elif http is not None and token_env is not None:
        _serve_http(options, http, _names(allow_host or ""), token_env)
    else:
        _serve_stdio(options)


def _usage(read: Callable[[], Value]) -> Value:
    """What ``read`` returns; its WhetError is wrong usage."""
    try:
        return read()
    except WhetError as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def _settling() -> Iterator[None]:
    """What start-up makes stays, so the collector need not walk it, neither now nor during calls.

    A call under load took 2.1 ms of CPU with this where it took 2.9 (benchmarks/mcp_load.py).
    """
    with importing():
        yield
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)


def _confine(options: Options) -> None:
    """Rows are read here and by the runs that are started from here, which inherit it."""
    os.environ["WHET_FILES_WITHIN"] = str(options.root)


def _serve_stdio(options: Options) -> None:
    _confine(options)
    with _settling():
        from .server import Server

        server = Server(options)
    server.run("stdio")


def _serve_http(options: Options, text: str, names: tuple[str, ...], token_env: str) -> None:
    with importing():
        from .bearer import take_bearer
        from .http import PATH, Address, http_app, http_server

    _confine(options)
    address = _usage(lambda: Address.parse(text, names))
    bearer = _usage(lambda: take_bearer(token_env, os.environ))
    with address.listen() as listening:
        port = listening.getsockname()[1]
        with _settling():
            server = http_server(http_app(options, address, bearer, port))
        shown = f"[{address.host}]" if ":" in address.host else address.host
        click.echo(f"whet-mcp: http://{shown}:{port}{PATH}, root {options.root}", err=True)
        if names:
            click.echo("The token travels unencrypted: put a proxy with TLS in front.", err=True)
        server.run(sockets=[listening])


def _test(command: Sequence[str]) -> None:
    import anyio

    from .self_test import self_test

    if not anyio.run(self_test, command, click.echo):
        raise SystemExit(1)


def _configuration(
    client: str, options: Options, remote_code: Path | None, http: str | None, token_env: str | None
) -> str:
    click.echo(f"For {CLIENTS[client]}:", err=True)
    if http is not None and token_env is not None:
        return called(client, f"http://{http}/mcp", token_env)
    return started(client, _command(options, remote_code))


def _command(options: Options, remote_code: Path | None) -> list[str]:
    """The command line that serves these options over stdio, wherever it is started."""
    words = [sys.executable, "-P", "-m", "whet.mcp_server", "--root", str(options.root)]
    if options.read_only:
        words.append("--read-only")
    if options.toolsets != BY_DEFAULT:
        words += ["--toolsets", ",".join(name for name in TOOLSETS if name in options.toolsets)]
    if remote_code is not None:
        words += ["--allow-remote-code", str(remote_code.resolve())]
    if options.push_unasked:
        words.append("--allow-push")
    return words


def main(args: Sequence[str] | None = None) -> None:
    """Console entry point; leaves by SystemExit with one of the exit codes above."""
    try:
        sys.exit(cli.main(args, prog_name="whet-mcp", standalone_mode=False))
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show(sys.stderr)
        sys.exit(error.exit_code)
    except (WhetError, OSError) as error:
        print(f"whet-mcp: {error}", file=sys.stderr)
        sys.exit(1)
