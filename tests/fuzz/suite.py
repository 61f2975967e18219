"""Mutated inputs at volume: clear errors, no traceback, no hang, no write outside of home and output.

python -P tests/fuzz/suite.py                             5,000 inputs over all targets, seed by the clock
python -P tests/fuzz/suite.py --target templates -n 300   of one target
python -P tests/fuzz/suite.py --replay build/fuzz/...     one that was kept
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

from fuzz.case import Target, draw  # noqa: E402
from fuzz.pool import Outcome, Worker  # noqa: E402
from fuzz.worker import targets  # noqa: E402
from support.counted import write_counts  # noqa: E402

KEPT = Path("build") / "fuzz"
SHOWN = 10
"""Findings of one kind beyond which further ones are counted, not kept."""


def run(inputs: Mapping[str, int], seed: int) -> Iterator[Outcome]:
    """Try so many inputs of each target, one after another."""
    with Worker() as worker:
        for name, count in inputs.items():
            for number in range(count):
                yield worker.ask(name, seed, number)


def shared_out(chosen: Sequence[Target], inputs: int) -> dict[str, int]:
    """Inputs of each target by its share, one at least."""
    shares = sum(target.share for target in chosen)
    return {target.name: max(1, -(-inputs * target.share // shares)) for target in chosen}


def keep(target: Target, seed: int, outcome: Outcome) -> Path:
    """The input as a folder, with what came of it."""
    folder = KEPT / f"{target.name}-{seed}-{outcome.number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    draw(target, seed, outcome.number).write(folder)
    words = f"{outcome.why}\n\n{outcome.trace}"
    (folder / "outcome.txt").write_text(words, encoding="utf-8", errors="backslashreplace")
    return folder


def replay(folder: Path) -> int:
    """Try a kept input again; 1 where it is still a finding."""
    with Worker() as worker:
        outcome = worker.ask(folder.name.rsplit("-", 2)[0], 0, 0, folder)
    print(f"{outcome.outcome} {outcome.why!a} {outcome.seconds} s\n{outcome.trace}")
    return int(outcome.outcome == "finding")


def long_run(chosen: Sequence[Target], inputs: int, seed: int, write: bool) -> int:
    """Try, print and keep; 1 where anything was found."""
    print(f"seed {seed}, {inputs} inputs, {len(chosen)} targets", flush=True)
    by_name = {target.name: target for target in chosen}
    counts: dict[str, Counter[str]] = {name: Counter() for name in by_name}
    kinds: Counter[str] = Counter()
    began = time.monotonic()
    for outcome in run(shared_out(chosen, inputs), seed):
        counts[outcome.target][outcome.outcome] += 1
        if outcome.number == 0:
            print(f"{time.monotonic() - began:4.0f} s  {outcome.target}", flush=True)
        if outcome.outcome == "finding":
            kind = f"{outcome.target}: {outcome.why[:60]}"
            kinds[kind] += 1
            if kinds[kind] <= SHOWN:
                folder = keep(by_name[outcome.target], seed, outcome)
                print(f"{outcome.target} {outcome.number}: {outcome.why[:200]!a}")
                print(f"    python -P tests/fuzz/suite.py --replay {folder}", flush=True)
    for name, counted in counts.items():
        print(f"{name:14} {json.dumps(counted)}")
    total = sum(counts.values(), Counter())
    seconds = time.monotonic() - began
    print(f"{total.total()} inputs, {total['finding']} findings, {seconds:.0f} s")
    if write:
        said = {
            "inputs": total.total(),
            "inputs that ended well or with a clear error": total["done"] + total["refused"],
            "of them with a clear error": total["refused"],
            **{f"inputs to {name}": counted.total() for name, counted in counts.items()},
        }
        write_counts("fuzz", "make fuzz", said, seconds)
    return int(total["finding"] > 0)


def main() -> int:
    """0 where every input was handled."""
    known = {name: target for name, target in targets().items() if target.share}
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--target", choices=sorted(known), action="append", help="by default all")
    parser.add_argument("-n", "--inputs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--replay", type=Path, help="a folder below build/fuzz")
    parser.add_argument("--write", action="store_true", help="write the counts for docs/reliability.md")
    asked = parser.parse_args()
    if asked.replay:
        return replay(asked.replay)
    chosen = [target for target in known.values() if not asked.target or target.name in asked.target]
    return long_run(chosen, asked.inputs, asked.seed, asked.write)


if __name__ == "__main__":
    sys.exit(main())
