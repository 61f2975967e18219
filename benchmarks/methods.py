"""Each method beside the plain library: the same random weights, rows and settings, one process a side.

    python -P benchmarks/methods.py --out benchmarks/results          small shapes on a CPU, a minute
    python -P benchmarks/methods.py --device cuda --out OUT           Qwen3-0.6B's and BGE-M3's shapes

Writes methods-<device>-<date>.json, which docs/methods_table.py reads, and the same as a page. Where some
methods alone were measured, the name says which: those of all others of the day stay.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "by_method"))

from cases import CASES, Job, Measured, name_of

HERE = Path(__file__).resolve().parent
SIDES = ("whet", "plain")
MODELS = {
    "cpu": {
        "decoder": "small",
        "unending": "small-unending",
        "encoder": "small-encoder",
        "hearing": "small-whisper",
        "seeing": "small-llava",
    },
    "cuda": {
        "decoder": "0.6b",
        "unending": "0.6b-unending",
        "encoder": "bge-m3",
        "hearing": "whisper-small",
        "seeing": "llava-1b",
    },
}
"""Of each kind of model."""
LENGTH = {"cpu": 256, "cuda": 1024}
STEPS = {"cpu": (8, 3), "cuda": (20, 8)}
"""Optimizer steps, and how many of them are not counted."""
GIB = 2**30


def main() -> int:
    """Measure the cases asked for; 1 where one of whet's sides failed."""
    options = _options()
    cases = options.methods.split(",") if options.methods else list(CASES)
    began = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="whet-methods-") as name:
        for case in cases:
            if time.monotonic() - began > options.total:
                print(f"{case}: no time was left", file=sys.stderr)
                continue
            found[case] = measure(case, options, Path(name))
            _say(case, found[case])
    results = {"machine": _machine(found, options.device), "device": options.device, "methods": found}
    text = page(results)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / name_of(results["device"], found, datetime.now(UTC).date().isoformat())
        stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
    return int(any(one["whet"]["error"] for one in found.values()))


def measure(case: str, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Both sides of a case."""
    about, gpu = CASES[case], options.device == "cuda"
    model = MODELS[options.device][about.family]
    steps, warm = (about.fewer if gpu else None) or STEPS[options.device]
    batch, words = about.batch[gpu], about.words[gpu]
    folder = options.folder / model
    rows = scratch / case / "rows.jsonl"
    rows.parent.mkdir()
    made = about.rows(max(batch * (steps + 1), 100), words)
    rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    if about.files is not None:
        about.files(made, rows.parent)
    sides: dict[str, Any] = {}
    for side in ("make", *SIDES):
        job = Job(
            side=side,
            case=case,
            model=model,
            folder=str(folder),
            rows=str(rows),
            device=options.device,
            batch=batch,
            length=LENGTH[options.device],
            steps=steps,
            warm=warm,
            threads=options.threads,
        )
        result = _run(job, scratch, options.limit)
        if side != "make":
            sides[side] = asdict(result)
    return {
        "model": model,
        "plain": {**sides["plain"], "library": about.plain},
        "whet": sides["whet"],
        "batch": batch,
        "words": words,
        "unit": about.unit,
    }


def _run(job: Job, scratch: Path, limit: float) -> Measured:
    given, into, log = (scratch / name for name in ("job.json", "result.json", "log.txt"))
    given.write_text(json.dumps(asdict(job)), encoding="utf-8")
    into.unlink(missing_ok=True)
    paths = [str(HERE.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "WHET_HOME": str(scratch / "home")}
    if job.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    words = [sys.executable, "-P", str(HERE / "by_method" / "side.py"), str(given), str(into)]
    with log.open("wb") as file:
        try:
            code = subprocess.run(
                words, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=limit
            ).returncode
        except subprocess.TimeoutExpired:
            return Measured(error=f"not done after {limit:.0f} s")
    if into.is_file():
        return Measured(**json.loads(into.read_text(encoding="utf-8")))
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if code:
        print("\n".join(lines[-15:]), file=sys.stderr)
    said = lines[-1].partition(". ")[0] if lines else "no output"
    return Measured(error=f"ended with code {code}: {said[:200]}")


def page(results: dict[str, Any]) -> str:
    """As a table."""
    some = "" if len(results["methods"]) == len(CASES) else f" --methods {','.join(results['methods'])}"
    lines = [
        f"# Methods beside the plain library, {results['machine']}, {datetime.now(UTC).date().isoformat()}",
        "",
        "Random weights, LoRA of rank 16, nothing recomputed, the same rows in the same batches; a process "
        "each. `python -P benchmarks/methods.py"
        f"{'' if results['device'] == 'cpu' else ' --device cuda'}{some}`"
        f"{' Seconds are of the process, on one thread.' if results['device'] == 'cpu' else ''}",
        "",
        "| method | shape | whet | plain | ratio | whet's step | planned | whet's peak | planned "
        "| plain's peak | fused | first loss, or reward |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, one in results["methods"].items():
        whet, plain = one["whet"], one["plain"]
        ratio = f"{whet['rate'] / plain['rate']:.2f}" if whet["rate"] and plain["rate"] else ""
        lines.append(
            f"| {case} | {one['model']}, {one['batch']} {one['unit']} | {_rate(whet, one)} | "
            f"{_rate(plain, one)} ({plain['library']}) | {ratio} | {_seconds(whet['step'])} | "
            f"{_seconds(whet['planned_step'])} | {_size(whet['peak'])} | {_size(whet['planned'])} | "
            f"{_size(plain['peak'])} | {whet['fused']} | "
            f"{_first(whet)} and {_first(plain)} |"
        )
    versions = next((one["whet"]["versions"] for one in results["methods"].values()), {})
    lines += ["", ", ".join(f"{name} {version}" for name, version in versions.items()), ""]
    return "\n".join(lines)


def _rate(side: dict[str, Any], one: dict[str, Any]) -> str:
    return side["error"] or f"{side['rate']:.4g} {one['unit']}/s"


def _first(side: dict[str, Any]) -> str:
    """Of both sides nearly the same, since rows and weights are."""
    return ", ".join(f"{value:.4g}" for value in (side["rewards"] or side["losses"])[:1])


def _size(value: int | None) -> str:
    return "" if value is None else f"{value / GIB:.2f} GiB"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value * 1000:.4g} ms"


def _say(case: str, one: dict[str, Any]) -> None:
    words = ", ".join(
        f"{side} {_rate(one[side], one)}, losses {one[side]['losses']}, rewards {one[side]['rewards']}"
        for side in SIDES
    )
    print(f"{case}: {words}", file=sys.stderr, flush=True)


def _machine(found: dict[str, dict[str, Any]], device: str) -> str:
    if device == "cpu":
        return f"{platform.machine()} CPU, {os.cpu_count()} cores"
    return next((one["whet"]["device"] for one in found.values() if one["whet"]["device"]), "GPU")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", help="of " + ",".join(CASES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--limit", type=float, default=120, help="seconds a side")
    parser.add_argument("--total", type=float, default=900, help="seconds after which no case begins")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, on both sides")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "whet-shapes")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
