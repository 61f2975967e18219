"""`eval`, `export`, `smoke`, `chat`: measure what was trained, write artefacts, prove them, talk to them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from whet.engine import api

from .common import (
    EXIT_FAILED,
    EXIT_PROOF_FAILED,
    follow_and_report,
    json_option,
    print_event,
    print_json,
    run_argument,
    say_followed,
    say_started,
    talk,
)


@click.command()
@run_argument
@click.option("--data", help="Rows of another source; by default those RUN held out.")
@click.option("--max-rows", type=click.IntRange(min=1), help="Only the first N rows.")
@click.option(
    "--prompt", "-p", "prompts", multiple=True, help="Ask both this, repeatable; by default a few rows."
)
@click.option("--detach", is_flag=True, help="Start it and return.")
@json_option
def eval(
    run: str,
    data: str | None,
    max_rows: int | None,
    prompts: tuple[str, ...],
    detach: bool,
    as_json: bool,
) -> int:
    """Measure RUN: held-out loss and metrics of its method, of its base beside the tuned model; answers, too,
    where it is a language model.

    It is a run by itself and outlives this terminal; Ctrl-C only detaches.
    """
    job = api.start_evaluation(run, data, max_rows, prompts, started_by="cli")
    if detach:
        say_started(job, as_json)
        return 0
    say_followed(job, as_json)
    return follow_and_report(job, as_json)


@click.command()
@run_argument
@click.option("--gguf", "types", multiple=True, help="GGUF types, repeatable: f16, q8_0, q4_k_m,iq2_xs")
@click.option(
    "--imatrix",
    help="Importance matrix from: rows (those trained on), a text or data file, or a matrix (.gguf). By "
    "default only types that need one get it, from the rows trained on.",
)
@click.option("--merged", is_flag=True, help="Keep the merged 16-bit weights.")
@click.option("--merged-4bit", is_flag=True, help="Merged weights in bitsandbytes' nf4.")
@click.option("--fp8", is_flag=True, help="Merged weights in FP8 for vLLM and SGLang.")
@click.option("--adapter-gguf", is_flag=True, help="The adapter as a GGUF, laid over the base's.")
@click.option("--memory", type=float, help="Share of the free memory to use, 0.75 by default.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder; by default the run's own export/.")
@click.option("--no-smoke", is_flag=True, help="Skip the proof. Such a file is not pushed anywhere.")
@click.option("--modelfile", is_flag=True, help="Only write the Modelfile anew, for GGUF files there are.")
@json_option
def export(
    run: str,
    types: tuple[str, ...],
    imatrix: str | None,
    merged: bool,
    merged_4bit: bool,
    fp8: bool,
    adapter_gguf: bool,
    memory: float | None,
    out: Path | None,
    no_smoke: bool,
    modelfile: bool,
    as_json: bool,
) -> int:
    """Export RUN (or an adapter or model folder): merge, GGUF, proof. By default what its recipe asks."""
    targets = {"merged_4bit": merged_4bit, "fp8": fp8, "adapter_gguf": adapter_gguf}
    wanted = [name for name, asked in targets.items() if asked]
    if modelfile:
        if types or merged or wanted:
            raise click.UsageError("--modelfile writes nothing else; leave --gguf and --merged out.")
        return _write_modelfile(run, out, as_json)
    names = [name for group in types for name in group.split(",") if name]
    if imatrix and not names:
        raise click.UsageError("--imatrix goes with --gguf TYPE.")
    if memory is not None and not (names or wanted or merged):
        raise click.UsageError("--memory goes with what is to be written; a recipe has its own.")
    events = api.export(
        run, [*names, *wanted], merged, out, smoke=not no_smoke, imatrix=imatrix, memory=memory
    )
    return _show(events, as_json)


def _write_modelfile(target: str, out: Path | None, as_json: bool) -> int:
    found = api.write_modelfile(target, out)
    if as_json:
        print_json({"path": str(found.path) if found.path else None, "notes": found.notes})
    else:
        for line in [*found.notes, *([f"wrote {found.path}"] if found.path else [])]:
            talk().print(line, soft_wrap=True)
    return EXIT_FAILED if found.path is None else 0


@click.command()
@click.argument("gguf", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--reference",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="The folder of the model it was made from.",
)
@json_option
def smoke(gguf: Path, reference: Path, as_json: bool) -> int:
    """Prove GGUF against the model it came from: ids, template, BOS, stops, logits, answers.

    A folder of merged weights is proven against the adapter it was made with.
    """
    return _show(api.smoke(gguf, reference), as_json)


@click.command()
@click.argument("target", default="last")
@click.option("--prompt", "-p", multiple=True, help="Ask this and leave; repeatable for several turns.")
@click.option("--system", help="System message.")
@click.option(
    "--base/--no-base", default=None, help="Also the base model's answer; by default where there is one."
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy."
)
@json_option
def chat(
    target: str,
    prompt: tuple[str, ...],
    system: str | None,
    base: bool | None,
    max_new_tokens: int,
    temperature: float,
    as_json: bool,
) -> None:
    """Talk to TARGET: a run (base beside tuned), a model folder or a GGUF file."""
    console = talk()
    wanted = api.chat_target(target)
    with console.status("loading the model"):
        session = api.ChatSession(wanted)
    voices = [voice for voice in wanted.voices if base is not False or voice != "base"]
    histories: dict[str, list[dict[str, str]]] = {
        voice: [{"role": "system", "content": system}] if system else [] for voice in voices
    }
    with session:
        if not prompt:
            console.print("Ctrl-D or /quit leaves.")
        for question in _questions(prompt):
            for voice in voices:
                histories[voice].append({"role": "user", "content": question})
                answer = _answer(session, histories[voice], voice, max_new_tokens, temperature, as_json)
                histories[voice].append({"role": "assistant", "content": answer})
            if as_json:
                said = {voice: histories[voice][-1]["content"] for voice in voices}
                print_json({"prompt": question, "answers": said})


def _questions(prompts: tuple[str, ...]) -> Iterable[str]:
    if prompts:
        yield from prompts
        return
    while True:
        try:
            line = click.prompt("you", prompt_suffix="> ", err=True)
        except click.Abort:
            return
        if line.strip() in ("/quit", "/exit"):
            return
        yield line


def _answer(
    session: api.ChatSession,
    messages: list[dict[str, str]],
    voice: api.Who,
    max_new_tokens: int,
    temperature: float,
    quiet: bool,
) -> str:
    from ..render.text import printable

    if not quiet:
        click.echo(click.style(f"{voice}> ", bold=True), nl=False)
    answer = ""
    for piece in session.ask(messages, voice, max_new_tokens, temperature):
        answer += piece.text
        if not quiet:
            click.echo(printable(piece.text), nl=False)
    if not quiet:
        click.echo()
    return answer.strip()


def _show(events: Iterable[api.Event], as_json: bool) -> int:
    """Print an export's events; the exit code says how the proof ended."""
    from ..render.progress import Follower

    proofs: list[api.ExportEvent] = []
    failed = False
    with Follower(talk()) as follower:
        for event in events:
            failed = failed or isinstance(event, api.ErrorEvent)
            if isinstance(event, api.ExportEvent) and event.kind == "smoke":
                proofs.append(event)
            if as_json:
                print_event(event)
            else:
                follower.show(event)
    statuses = [proof.detail.get("status") for proof in proofs]
    worst = next((status for status in ("fail", "warn", "pass") if status in statuses), None)
    if worst and not as_json:
        click.echo(f"verdict: {worst}")
    if failed:
        return EXIT_FAILED
    return EXIT_PROOF_FAILED if worst == "fail" else 0
