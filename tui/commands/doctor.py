"""`doctor`: the machine in one screen, its environment flags, its kernels, an archive for a bug report."""

from __future__ import annotations

from pathlib import Path

import click

from whet.engine import api

from .common import EXIT_FAILED, json_option, print_data, print_json, talk


@click.command()
@click.option(
    "--env", "environment", is_flag=True, help="Instead: environment flags that are set and matter."
)
@click.option("--kernels", is_flag=True, help="Instead: parity and speed of the kernels, and who runs.")
@click.option("--interpret", is_flag=True, help="With --kernels and no GPU: parity by Triton's interpreter.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write an archive for a bug report (.tar.gz): no tokens, no paths of yours.",
)
@json_option
def doctor(environment: bool, kernels: bool, interpret: bool, bundle: Path | None, as_json: bool) -> int:
    """This machine: GPU, memory, disk, versions against the tested ranges, llama.cpp, the hub, what is wrong.

    Loads libraries and runs a tiny quantised model in processes of their own: some seconds the first time.
    Exits with 1 when it finds an error. Never shows a token.
    """
    if interpret and not kernels:
        raise click.UsageError("--interpret belongs to --kernels.")
    if ((environment or kernels) and bundle is not None) or (environment and kernels):
        raise click.UsageError("Choose one of --env, --kernels and --bundle.")
    if kernels:
        return _kernels(interpret, as_json)
    if environment:
        return _environment(as_json)
    with talk().status("looking") as status:
        report = api.doctor(progress=status.update)
        names = api.bundle(report, bundle) if bundle is not None else []
    if as_json:
        print_json(report)
    else:
        from ..render.machine import machine_report

        print_data(machine_report(report))
    if bundle is not None:
        talk().print(f"\n{bundle}: {len(names)} files, free of tokens and home paths.", soft_wrap=True)
        talk().print(f"  look inside first   tar tzf {bundle}", soft_wrap=True)
    return EXIT_FAILED if any(finding.severity == "error" for finding in report.findings) else 0


def _environment(as_json: bool) -> int:
    flags = api.environment_flags()
    if as_json:
        print_json(flags)
    else:
        from ..render.flags import flag_report

        print_data(flag_report(flags))
    return 0


def _kernels(interpret: bool, as_json: bool) -> int:
    with talk().status("loading kernels") as status:
        report = api.check_kernels(interpret, progress=lambda name: status.update(f"checking {name}"))
    if as_json:
        print_json(report)
    else:
        from ..render.kernels import kernel_report

        print_data(kernel_report(report))
    return EXIT_FAILED if report.wrong else 0
