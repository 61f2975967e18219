"""One run on one GPU and on several: tokens a second, memory of each GPU beside the plan's, and the losses.

    PYTHONPATH=src python -P benchmarks/several_gpus.py --cases 0.6b-copies,8b-copies,8b-shares --out FILE.md

Models have random weights and rows random letters. Each run goes through whet's own worker and its ranks, as
`whet train` starts them. What a GPU holds beside torch's allocator (context, modules, NCCL's buffers) is read
from the driver.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import shlex
import statistics
import string
import sys
import tempfile
import threading
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "training"))

import pynvml
from models import make

GIB = 2**30
LENGTH, ROWS = 2048, 64
WARM = 4
"""Steps that are not measured: captured, tuned, compiled."""
WATCH_SECONDS = 0.25
HEAD = (
    "case", "GPUs", "how", "tokens/s", "over one", "s/step", "planned s", "peak GiB", "planned GiB",
    "beside the allocator, GiB", "first loss", "last loss",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model, on how many GPUs, and what memory each may use."""

    model: str
    gpus: int
    max_memory_gib: float | None = None
    rows: int = 4  # of a micro-batch


CASES = {
    "0.6b-copies": (Case("0.6b", 1), Case("0.6b", 2)),
    "8b-copies": (Case("8b", 1), Case("8b", 2)),
    "8b-shares": (Case("8b", 2, max_memory_gib=17.0, rows=2),),
    "tiny-copies": (Case("tiny", 1), Case("tiny", 2)),
}


class Watch:
    """The most bytes of each GPU that anybody used while it watched, by the driver."""

    def __init__(self) -> None:
        self.most: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        pynvml.nvmlInit()
        self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        self.before, self.most = self._used(), [0] * len(self._gpus)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _used(self) -> list[int]:
        return [int(pynvml.nvmlDeviceGetMemoryInfo(gpu).used) for gpu in self._gpus]

    def _watch(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            self.most = [max(pair) for pair in zip(self.most, self._used(), strict=True)]


def write_rows(path: Path) -> str:
    """Texts of a token a letter that fill a row each."""
    draw = random.Random(0)
    texts = ("".join(draw.choices(string.ascii_letters, k=LENGTH - 2)) for _ in range(ROWS))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def recipe_of(case: Case, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Sixteen rows a step whatever the number of GPUs, nothing but steps."""
    return {
        "name": f"{case.model}-{case.gpus}",
        "model": {"name": str(folder / case.model), "max_length": LENGTH},
        "data": {"train": str(folder / "rows.jsonl"), "format": "text"},
        "adapter": {"rank": 16, "alpha": 32, "dropout": 0},
        "training": {
            "max_steps": options.steps, "batch_size": case.rows, "gradient_accumulation": 16 // case.rows,
            "learning_rate": 2e-4, "warmup": 2, "save_every": options.steps,
            "max_memory_gib": case.max_memory_gib,
        },
        "sampling": {"prompts": []},
        "export": {"gguf": [], "merged": False},
        "hardware": {"gpus": case.gpus},
        "accept": ["D16"],
    }  # fmt: skip


def measure(case: Case, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A whole run, and what its steps were like."""
    from whet.engine import api
    from whet.engine.recipe_files import build

    plan = api.plan(build(recipe_of(case, folder, options)))
    blocking = plan.blocked()
    assert not blocking, [(one.id, one.title) for one in blocking]
    resolved = plan.resolved
    with Watch() as watch:
        run = api.start(plan, started_by="benchmark")
        steps = [event for event in api.follow(run) if event.type == "step"]
    view = api.run(run)
    if view.status != "finished":
        logs = [path.read_text(encoding="utf-8")[-1500:] for path in sorted(Path(view.path).glob("*.log"))]
        return {"failed": f"{view.state.error}", "logs": logs}
    timed = steps[WARM:]
    seconds = statistics.median(step.seconds for step in timed)
    peak = max(step.memory_bytes for step in steps)
    return {
        "strategy": resolved.strategy if resolved.ranks > 1 else "one",
        "tokens": statistics.median(step.tokens / step.seconds for step in timed),
        "seconds": seconds,
        "planned_seconds": None
        if plan.seconds is None or plan.seconds_measured
        else plan.seconds / options.steps,
        "peak": peak / GIB,
        "planned_peak": plan.memory.peak / GIB,
        "beside": [(most - before) / GIB for most, before in zip(watch.most, watch.before, strict=True)],
        "losses": [step.loss for step in steps],
    }


def line(name: str, case: Case, found: dict[str, Any], one: float | None) -> str:
    """A row of the table."""
    if "failed" in found:
        return f"| {name} | {case.gpus} | failed: {found['failed'][:160]} |" + " |" * (len(HEAD) - 3)
    beside = ", ".join(f"{used - found['peak']:.2f}" for used in found["beside"][: case.gpus])
    planned = found["planned_seconds"]
    cells = (
        name, case.gpus, found["strategy"], f"{found['tokens']:,.0f}",
        f"{found['tokens'] / one:.2f}×" if one else "", f"{found['seconds']:.3f}",
        f"{planned:.3f}" if planned else "", f"{found['peak']:.2f}", f"{found['planned_peak']:.2f}", beside,
        f"{found['losses'][0]:.4f}", f"{found['losses'][-1]:.4f}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default="0.6b-copies,8b-copies,8b-shares", help=", ".join(CASES))
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "whet-benchmark-models")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    write_rows(options.folder / "rows.jsonl")
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory(prefix="whet-several-") as home:
        os.environ["WHET_HOME"] = home
        for name in options.cases.split(","):
            one = None
            for case in CASES[name]:
                make(case.model, options.folder / case.model)
                found = measure(case, options.folder, options)
                lines.append(line(name, case, found, one))
                print(lines[-1], flush=True)
                print(json.dumps(found), file=sys.stderr, flush=True)
                one = one or found.get("tokens")
    if options.out:
        names = ("torch", "triton", "transformers", "trl", "peft", "accelerate")
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
        gpu = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
        options.out.write_text(
            f"# Several GPUs, {gpu}, {datetime.datetime.now(datetime.UTC).date()}\n\n"
            f"Python {platform.python_version()}, {versions}.\n"
            f"`python -P benchmarks/several_gpus.py {shlex.join(sys.argv[1:])}`\n\n"
            + "\n".join(lines)
            + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
