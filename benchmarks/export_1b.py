"""What an export of a 1B model costs on this machine: seconds and peak memory of each stage, file by file.

    PYTHONPATH=src python -P benchmarks/export_1b.py --out benchmarks/results/export-1b.md
    PYTHONPATH=src python -P benchmarks/export_1b.py --types q4_k_m,q8_0 --no-proof

Random weights in the shape of Llama 3.2 1B with the demo's tokenizer, exported by the process that
`whet export` starts. Memory is what that process and its children hold beyond mapped files (RssAnon and
RssShmem of /proc, sampled), so the weights that are read through a memory map do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

# A folder of its own: in this one, kernels.py would hide a package that transformers looks for.
sys.path.insert(0, str(Path(__file__).resolve().parent / "training"))

from models import make

from whet.engine import demo
from whet.engine.processes import send, start
from whet.engine.recipe import ExportSection

SAMPLE_SECONDS = 0.05
PACKAGES = ("gguf", "llama-cpp-python", "torch", "transformers")


@dataclass
class Stage:
    """A stretch of the export between two phase events of different names."""

    name: str
    began: float
    used: float
    """Seconds of CPU time that had been used when it began, and in the end those it used."""
    seconds: float = 0.0
    peak: int = 0


@dataclass
class Watch:
    """Memory of a process and its children, attributed to the stage it is in."""

    pid: int
    stages: list[Stage] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def enter(self, name: str) -> None:
        """Another stage begins, unless it is the same."""
        if self.stages and self.stages[-1].name == name:
            return
        now, used = time.monotonic(), sum(map(cpu_seconds, tree(self.pid)))
        if self.stages:
            last = self.stages[-1]
            last.seconds, last.used = now - last.began, used - last.used
        self.stages.append(Stage(name, now, used))

    def sample(self) -> None:
        """Until it is over."""
        while not self.over.wait(SAMPLE_SECONDS):
            held = sum(map(private_bytes, tree(self.pid)))
            if self.stages:
                self.stages[-1].peak = max(self.stages[-1].peak, held)


def tree(pid: int) -> list[int]:
    """The process and all that it started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []  # it has ended meanwhile
    return [pid, *(one for child in children for one in tree(int(child)))]


def private_bytes(pid: int) -> int:
    """Resident bytes that no file backs."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def stage_of(event: dict[str, Any]) -> str | None:
    """What a phase event is about."""
    if event["type"] != "phase":
        return None
    return "proof" if event["phase"] == "smoke" else event["detail"]


def export(model: Path, out: Path, section: ExportSection) -> tuple[list[Stage], list[dict[str, Any]]]:
    """Stages of one export, and its events."""
    process = start("whet.engine.export.export_process", stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    watch = Watch(process.pid)
    watch.enter("start")
    sampler = threading.Thread(target=watch.sample)
    sampler.start()
    request = {"action": "export", "trained": str(model), "out": str(out), "section": section.model_dump()}
    send(process, request, last=True)
    events = []
    for line in process.stdout:
        events.append(json.loads(line))
        name = stage_of(events[-1])
        if name is not None:
            watch.enter(name)
    watch.enter("end")
    process.wait()
    watch.over.set()
    sampler.join()
    return [stage for stage in watch.stages if stage.name != "end"], events


def report(stages: list[Stage], events: list[dict[str, Any]], parameters: int, cpu: str) -> str:
    """As Markdown."""
    lines = [
        f"# Export of a 1B model, {time.strftime('%Y-%m-%d')}",
        "",
        f"{cpu}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        + f". Load average {os.getloadavg()[0]:.1f} at the end.",
        f"`python -P {' '.join(sys.argv)}`: random weights in the shape of Llama 3.2 1B, "
        f"{parameters:,} parameters in bf16.",
        "",
        "| stage | seconds | of CPU time | peak memory beyond the map, MB |",
        "|---|---|---|---|",
        *(f"| {one.name} | {one.seconds:.0f} | {one.used:.0f} | {one.peak / 1e6:.0f} |" for one in stages),
        f"| **all** | **{sum(one.seconds for one in stages):.0f}** | {sum(one.used for one in stages):.0f} | "
        f"{max(one.peak for one in stages) / 1e6:.0f} |",
        "",
    ]
    files = [event for event in events if event["type"] == "export" and event["kind"] == "gguf"]
    lines += [f"- `{Path(one['path']).name}`: {one['bytes'] / 1e6:.0f} MB" for one in files]
    proofs = [event["detail"] for event in events if event["type"] == "export" and event["kind"] == "smoke"]
    for verdict in proofs:
        steps = ", ".join(f"{proof['name']} {proof['status']}" for proof in verdict["proofs"])
        lines.append(f"- {Path(verdict['gguf']).name}: **{verdict['status']}** ({steps})")
    errors = [f"- error: {event['message']}" for event in events if event["type"] == "error"]
    return "\n".join([*lines, *errors]) + "\n"


def cpu_name() -> str:
    """As the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--types", default="q4_k_m", help="GGUF types, separated by commas")
    parser.add_argument("--imatrix", help="rows for an importance matrix: a text or data file")
    parser.add_argument("--no-proof", action="store_true")
    parser.add_argument("--shape", default="1b", help="one of benchmarks/training/models.py")
    parser.add_argument("--model", type=Path, help="where the model lies or is written; else it is temporary")
    parser.add_argument("--out", type=Path, help="write the report there as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whet-export-1b-") as folder:
        model = options.model or Path(folder) / "model"
        make(options.shape, model)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(demo.MODEL_DIR / name, model / name)
        weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        section = ExportSection(
            gguf=options.types.split(","), imatrix=options.imatrix, smoke_test=not options.no_proof
        )
        stages, events = export(model, Path(folder) / "out", section)
        shutil.rmtree(Path(folder) / "out")
    text = report(stages, events, weights // 2, cpu_name())
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    return any(event["type"] == "error" for event in events)


if __name__ == "__main__":
    sys.exit(main())
