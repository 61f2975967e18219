"""A row of the targets table: whet and its rivals on the same checkpoint and rows, one process each.

    python -P benchmarks/end_to_end.py 8b-bf16 --out benchmarks/results
    python -P benchmarks/end_to_end.py 0.6b-chat --stacks whet,unsloth --steps 40

Prints each run as it ends, then the table with ratios, losses and targets. `list` names the rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

# A folder of its own: in this one, kernels.py would hide a package that transformers looks for.
sys.path.insert(0, str(Path(__file__).resolve().parent / "training"))

from models import ENCODERS, SHAPES
from report import append, heading, table
from rows import PRECISIONS, ROWS, Job, Result, Row

HERE = Path(__file__).resolve().parent
PARTS = HERE / "training"
LEAST = 20.0
"""Seconds that a stack needs at least."""
SHOWN = 12
"""Lines of a failed process's log that are printed."""


def main() -> int:
    """Run a row; 1 where one of whet's own runs failed, other than for want of a feature."""
    options, began = _options(), time.monotonic()
    row = ROWS[options.row]
    jobs = _jobs(row, options)
    model = next(iter(jobs.values())).model
    folder = options.folder / model
    _python([str(PARTS / "models.py"), model, str(folder)], check=True)
    results: dict[str, Result] = {}
    for label, job in jobs.items():
        job = replace(job, folder=str(folder))
        left = options.total - (time.monotonic() - began)
        if left < LEAST:
            results[label] = Result(error="no time was left in this call", missing=True)
            continue
        if job.cap_of is not None:
            rival = results.get(job.cap_of)
            if rival is None or rival.error:
                results[label] = Result(error=f"{job.cap_of} was not measured in this call", missing=True)
                continue
            job = jobs[label] = replace(job, cap=rival.peak)
        results[label] = run_job(job, min(options.limit, left))
        print(_brief(label, results[label], row.unit), file=sys.stderr, flush=True)
    text = heading(row, jobs, results) + "\n" + table(row, jobs, results) + "\n"
    print(text)
    if options.out is not None:
        print(f"appended to {append(options.out, model, results, text)}", file=sys.stderr)
    if options.json is not None:
        everything = {label: asdict(result) for label, result in results.items()}
        options.json.write_text(json.dumps(everything, indent=1), encoding="utf-8")
    ours = [results[label] for label, job in jobs.items() if job.stack == "whet"]
    return int(any(result.error and not result.missing for result in ours))


def run_job(job: Job, limit: float) -> Result:
    """Train one stack in a process of its own, which is ended after ``limit`` seconds."""
    with tempfile.TemporaryDirectory(prefix="whet-benchmark-") as name:
        scratch = Path(name)
        given, into, log = scratch / "job.json", scratch / "result.json", scratch / "log.txt"
        fresh, place = {}, Path(job.folder).parent  # Unsloth leaves compiled code in the working folder
        if job.fresh:
            _into_page_cache(Path(job.folder))
            fresh = {key: str(scratch / key) for key in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
            place = scratch
        given.write_text(json.dumps({**asdict(job), "started": time.time()}), encoding="utf-8")
        with log.open("wb") as file:
            words = [str(PARTS / "stacks.py"), str(given), str(into)]
            code = _python(words, limit=limit, cwd=place, output=file, more=fresh)
        if into.is_file():
            return Result(**json.loads(into.read_text(encoding="utf-8")))
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        print("\n".join(lines[-SHOWN:]), file=sys.stderr)
        if code is None:
            return Result(error=f"not done after {limit:.0f} s")
        return Result(error=f"ended with code {code}: {lines[-1][:200] if lines else 'no output'}")


def _into_page_cache(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 26):
                pass


def _python(
    words: list[str],
    *,
    limit: float | None = None,
    cwd: Path | None = None,
    output: Any = None,
    more: dict[str, str] | None = None,
    check: bool = False,
) -> int | None:
    """Run a script of ours with this interpreter; its exit code, None where it ran out of time.

    It gets a process group of its own, so that what it started ends with it.
    """
    paths = [str(HERE.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(more or {})}
    process = subprocess.Popen(
        [sys.executable, "-P", *words],
        env=environment,
        cwd=cwd,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=True,
    )
    try:
        code: int | None = process.wait(limit)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if check and code:
        raise SystemExit(f"{' '.join(words)} ended with code {code}")
    return code


def _jobs(row: Row, options: argparse.Namespace) -> dict[str, Job]:
    """The row's jobs, narrowed and changed as the command line says."""
    wanted = options.stacks.split(",") if options.stacks else None
    jobs = {
        label: job
        for label, job in row.jobs.items()
        if wanted is None or label in wanted or (job.stack in wanted and job.stack not in row.jobs)
    }
    if not jobs:
        raise SystemExit(f"none of {options.stacks} is in this row; it has {', '.join(row.jobs)}")
    changes: dict[str, Any] = {"device": options.device or _device()}
    if options.model:
        changes |= {"model": options.model}
    if options.steps:
        changes |= {"steps": options.steps, "warm": options.warm or options.steps // 2}
    for name in ("batch", "accumulation", "length", "precision"):
        if getattr(options, name):
            changes[name] = getattr(options, name)
    changed = {label: replace(job, **changes) for label, job in jobs.items()}
    return {
        label: replace(job, trainer=options.trainer) if job.stack == "whet" else job
        for label, job in changed.items()
    }


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _brief(label: str, result: Result, unit: str) -> str:
    if result.error:
        return f"{label}: {result.error}"
    return (
        f"{label}: {result.rate:,.0f} {unit}/s, {result.peak:.2f} GiB, losses {result.losses[0]:.4f} to "
        f"{result.losses[-1]:.4f}, loaded in {result.load:.0f} s"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("row", choices=[*ROWS, "list"], metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--stacks", default="", help="labels of the row, or stacks that no label names")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps, half of them to warm up")
    parser.add_argument("--warm", type=int, default=0, help="of the steps, those that are not measured")
    parser.add_argument("--model", default="", choices=(*SHAPES, *ENCODERS), help="another one")
    parser.add_argument("--precision", default="", choices=PRECISIONS, help="another one for all stacks")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--accumulation", type=int, default=0)
    parser.add_argument("--length", type=int, default=0, help="tokens of a row")
    parser.add_argument("--trainer", default="sft", choices=("sft", "run"), help="whet's")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="by default the GPU if there is one")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for a stack")
    parser.add_argument("--total", type=float, default=1e9, help="seconds for the whole call")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "whet-benchmark-models")
    parser.add_argument("--out", type=Path, help="folder of results, or a file, to append the table to")
    parser.add_argument("--json", type=Path, help="all figures of this call")
    options = parser.parse_args()
    if options.row == "list":
        for name, row in ROWS.items():
            print(f"{name}: {row.title}; {', '.join(row.jobs)}")
        raise SystemExit(0)
    return options


if __name__ == "__main__":
    sys.exit(main())
