"""What one training step does on the GPU and on the host: transformers with PEFT and TRL, then whet.

    python -P benchmarks/profile_step.py 0.6b 8b --out benchmarks/results/profile.md
    python -P benchmarks/profile_step.py tiny --device cpu

Each stack runs in a process of its own: steps to warm up, steps that are timed, one under torch's profiler,
and one without CUDA graphs under cProfile, its backward pass on the same thread.
"""

from __future__ import annotations

import argparse
import cProfile
import datetime
import json
import multiprocessing
import os
import platform
import pstats
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "training"))

from measuring import versions
from models import SHAPES, make
from rows import PRECISIONS, Job, MissingError, Result
from stacks import ENVIRONMENT, LOADERS, make_trainer

WARM, TIMED = 8, 4
WATCHED, EAGER = WARM + TIMED, WARM + TIMED + 1
"""The steps, counted from 0, that torch's profiler and cProfile look at."""
TOP = 12
"""Kernels and Python functions that are named."""
FLOORS = {"0.6b": 110_000, "8b": 18_400}
"""Tokens a second of an H200 in bf16 if only arithmetic and one pass over memory for each elementwise step
were left: products and attention at the rates they reach alone, nothing computed twice."""
ATTENTION = re.compile(r"attention|attend|fmha|flash|sdpa", re.IGNORECASE)
PRODUCT = re.compile(r"gemm|nvjet|cutlass|xmma|matmul|cublas|splitk", re.IGNORECASE)


@dataclass
class Profile:
    """One step of one stack; seconds."""

    step: float = 0.0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    launches: int = 0
    graphs: int = 0
    kernels: int = 0
    """Kernels that ran, those inside graphs included."""
    busy: float = 0.0
    """The GPU was running at least one kernel."""
    work: float = 0.0
    """Of all kernels together."""
    products: float = 0.0
    attention: float = 0.0
    top: list[tuple[str, int, float]] = field(default_factory=list)
    """Kernel, how often, seconds."""
    eager: float = 0.0
    """The step under cProfile."""
    host: list[tuple[str, int, float, float]] = field(default_factory=list)
    """Python function, calls, seconds of its own, and with what it calls."""
    note: str = ""
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    error: str = ""


def watcher(trainer_of: list[Any], marks: list[float], traced: Any, python: cProfile.Profile) -> Any:
    """A callback that times optimizer steps and switches the profilers on and off between them."""
    import torch
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WATCHED:
                traced.start()
            if state.global_step == EAGER:
                torch.autograd.set_multithreading_enabled(False)  # cProfile sees one thread
                (trainer,) = trainer_of
                if type(trainer).__module__.startswith("whet."):
                    _without_graphs(trainer)
                python.enable()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            if state.global_step == WATCHED + 1:
                traced.stop()
            if state.global_step == EAGER + 1:
                python.disable()
                torch.autograd.set_multithreading_enabled(True)

    return Watcher()


def _without_graphs(trainer: Any) -> None:
    if trainer.fast is not None:
        trainer.fast.graphed.stopped = "a step is profiled on the host"
        trainer.fast.graphed.graphs.clear()


def profile(job: Job) -> Profile:
    """Train a few steps and look at some of them."""
    os.environ.update(ENVIRONMENT)
    model, tokenizer = LOADERS[job.stack](job)
    import torch
    from torch.profiler import ProfilerActivity

    cuda = job.device == "cuda"
    found = Profile(tokens=job.batch * job.accumulation * job.length, versions=versions())
    found.device = torch.cuda.get_device_name() if cuda else platform.processor() or "CPU"
    marks: list[float] = []
    trainer_of: list[Any] = []
    python = cProfile.Profile()
    traced = torch.profiler.profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    )
    with tempfile.TemporaryDirectory() as scratch:
        callbacks = [watcher(trainer_of, marks, traced, python)]
        trainer = make_trainer(job, model, tokenizer, callbacks, scratch)
        trainer_of.append(trainer)
        if job.stack == "whet":
            from whet_stack import plan

            result = Result()
            plan(trainer, job, result)
            found.note = result.note
        trainer.train()
        trace = Path(scratch) / "trace.json"
        traced.export_chrome_trace(str(trace))
        read_trace(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"], found)
    between = [after - before for before, after in pairwise(marks)]
    found.step = statistics.median(between[WARM - 1 : WARM + TIMED - 1])
    found.eager = between[EAGER - 1]
    found.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found.host = _slowest(python)
    return found


def read_trace(events: Iterable[dict[str, Any]], found: Profile) -> None:
    """Count launches and add up kernels of a step's trace (times in microseconds)."""
    spans: list[tuple[float, float]] = []
    times: dict[str, tuple[int, float]] = {}
    for event in events:
        kind, name = event.get("cat", ""), event.get("name", "")
        if kind in ("cuda_runtime", "cuda_driver"):
            found.launches += "LaunchKernel" in name
            found.graphs += "GraphLaunch" in name
        if kind != "kernel":
            continue
        seconds = event["dur"] / 1e6
        spans.append((event["ts"] / 1e6, event["ts"] / 1e6 + seconds))
        count, before = times.get(name, (0, 0.0))
        times[name] = count + 1, before + seconds
        found.kernels += 1
        found.work += seconds
        if ATTENTION.search(name):
            found.attention += seconds
        elif PRODUCT.search(name):
            found.products += seconds
    end = 0.0
    for start, stop in sorted(spans):
        found.busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    by_time = sorted(times.items(), key=lambda item: -item[1][1])
    found.top = [(name, count, seconds) for name, (count, seconds) in by_time[:TOP]]


def _slowest(python: cProfile.Profile) -> list[tuple[str, int, float, float]]:
    """The functions that take the most time of their own."""
    stats: dict[Any, Any] = pstats.Stats(python).stats  # type: ignore[attr-defined]
    rows = [
        (f"{'/'.join(Path(file).parts[-2:])}:{line} {name}", calls, own, whole)
        for (file, line, name), (_, calls, own, whole, _) in stats.items()
    ]
    return sorted(rows, key=lambda row: -row[2])[:TOP]


# --- the process that asks


def in_process(job: Job) -> Profile:
    """:func:`profile` in a new process; why it failed instead, where it did."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    worker = context.Process(target=_send, args=(job, sending))
    worker.start()
    sending.close()
    try:
        found: Profile = receiving.recv()
    except EOFError:
        worker.join()
        return Profile(error=f"its process ended with code {worker.exitcode}")
    worker.join()
    return found


def _send(job: Job, sending: Connection) -> None:
    try:
        sending.send(profile(job))
    except MissingError as error:
        sending.send(Profile(error=str(error)))


def report(model: str, precision: str, found: dict[str, Profile]) -> str:
    """Markdown: the figures side by side, then each stack's kernels and Python functions."""
    lines = [f"## {model}, {precision}, 2×4 rows asked", "", "| a step of | " + " | ".join(found) + " |"]
    lines.append("|---|" + "---|" * len(found))
    floor = FLOORS.get(model) if precision == "bf16" else None
    rows = [
        ("seconds", lambda p: f"{p.step:.4f}"),
        ("tokens/s", lambda p: f"{p.tokens / p.step:,.0f}"),
        ("of the floor", lambda p: f"{p.tokens / p.step / floor:.0%}" if floor else ""),
        ("kernel launches", lambda p: f"{p.launches:,}"),
        ("graph launches", lambda p: f"{p.graphs:,}"),
        ("kernels run", lambda p: f"{p.kernels:,}"),
        ("GPU busy", lambda p: f"{p.busy / p.step:.0%}"),
        ("kernel time in matrix products", lambda p: f"{p.products / p.work:.0%}" if p.work else ""),
        ("in attention", lambda p: f"{p.attention / p.work:.0%}" if p.work else ""),
        ("seconds without graphs, under cProfile", lambda p: f"{p.eager:.4f}"),
        ("first and last loss", lambda p: f"{p.losses[0]:.4f}, {p.losses[-1]:.4f}"),
    ]
    for name, cell in rows:
        cells = [each.error if each.error else cell(each) for each in found.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for stack, each in found.items():
        lines += ["", f"{stack}{f' ({each.note})' if each.note else ''}:", ""]
        if each.top:
            lines += ["| kernel | times | ms | of kernel time |", "|---|---|---|---|"]
            for name, count, seconds in each.top:
                share = f"{seconds * 1e3:.2f} | {seconds / each.work:.1%}"
                lines.append(f"| `{name[:90].replace('|', '/')}` | {count} | {share} |")
            lines.append("")
        lines += ["| Python function | calls | own ms | with callees |", "|---|---|---|---|"]
        lines += [
            f"| `{name[:90].replace('|', '/')}` | {calls} | {own * 1e3:.1f} | {whole * 1e3:.1f} |"
            for name, calls, own, whole in each.host
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Profile each model with each stack and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("models", nargs="+", choices=tuple(SHAPES), metavar="MODEL", help=", ".join(SHAPES))
    parser.add_argument("--stacks", default="hf,whet", help=f"of {', '.join(LOADERS)}")
    parser.add_argument("--precision", default="bf16", choices=PRECISIONS)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "whet-benchmark-models")
    parser.add_argument("--out", type=Path, help="file to append the tables to")
    options = parser.parse_args()
    for model in options.models:
        found = profiled(model, options)
        text = "\n".join([*heading(found), report(model, options.precision, found)])
        print(text, flush=True)
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
    return 0


def profiled(model: str, options: argparse.Namespace) -> dict[str, Profile]:
    """Each stack's profile of one model, a process each."""
    folder = options.folder / model
    make_it = multiprocessing.get_context("spawn").Process(target=make, args=(model, folder))
    make_it.start()
    make_it.join()
    found: dict[str, Profile] = {}
    for stack in options.stacks.split(","):
        job = Job(
            stack, model, options.precision, length=options.length, steps=EAGER + 1, warm=WARM,
            folder=str(folder), device=options.device,
        )  # fmt: skip
        found[stack] = in_process(job)
        print(f"{model}, {stack}: {found[stack].step:.4f} s a step", file=sys.stderr, flush=True)
    return found


def heading(found: dict[str, Profile]) -> list[str]:
    """Where and by what it was measured."""
    first = next((each for each in found.values() if each.device), Profile())
    packages = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    return [
        f"# A step's profile, {first.device}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "",
        f"Python {platform.python_version()}, {packages}.",
        f"`{shlex.join(['python', '-P', *sys.argv])}`",
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
