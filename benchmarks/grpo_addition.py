"""Does the demo model learn to add by rewards alone? Accuracy on pairs of numbers it never saw, by seed.

    PYTHONPATH=src python -P benchmarks/grpo_addition.py --seeds 0,1,2 --out FILE.md

or in parts, each in a process of its own, and then the table of what they printed:

    PYTHONPATH=src python -P benchmarks/grpo_addition.py --seeds 0 --parts right > 0.jsonl
    PYTHONPATH=src python -P benchmarks/grpo_addition.py --seeds 0 --parts control >> 0.jsonl
    PYTHONPATH=src python -P benchmarks/grpo_addition.py --seeds 0 --read 0.jsonl --out FILE.md

The demo model has no arithmetic. A short fine-tuning on 600 sums shows it what an answer looks like
and leaves it wrong on most others. Then GRPO: it answers sums, and the reward says right or wrong, nothing
else. Neither stage sees the pairs that accuracy is measured on, in either order. The control is the
same run rewarded for writing a number at all.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

SHOWN = 600
"""Sums of the short fine-tuning."""
Rows = list[dict[str, str]]


def rows_of(seed: int, largest: int, measured: int) -> tuple[Rows, Rows, Rows]:
    """Sums to fine-tune on, to be rewarded on (those among them), and to be measured on, which are not."""
    draw = random.Random(seed)
    pairs = [(a, b) for a in range(largest + 1) for b in range(a, largest + 1)]
    draw.shuffle(pairs)
    held_out = [draw.choice(((a, b), (b, a))) for a, b in pairs[:measured]]
    others = [pair for a, b in pairs[measured:] for pair in dict.fromkeys(((a, b), (b, a)))]
    draw.shuffle(others)
    rewarded, held = (
        [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in some] for some in (others, held_out)
    )
    return rewarded[:SHOWN], rewarded, held


def chat(row: dict[str, str]) -> dict[str, Any]:
    """A sum as a conversation."""
    return {
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["answer"]},
        ]
    }


def written(folder: Path, name: str, rows: list[Any]) -> str:
    """The path of a file of rows."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def finished(values: dict[str, Any]) -> Any:
    """A run through whet's own worker, at its end."""
    from whet.engine import api
    from whet.engine.recipe_files import build

    run = api.start(api.plan(build(values)), started_by="benchmark")
    for event in api.follow(run):
        if event.type == "eval":
            print(values["name"], event.step, event.metrics, file=sys.stderr, flush=True)
    view = api.run(run)
    assert view.status == "finished", view.state.error
    return view


def warmed(seed: int, folder: Path, shown: Rows, steps: int) -> Path:
    """The demo model after a short fine-tuning on sums, all of its weights trained."""
    view = finished(
        {
            "name": f"warm-{seed}",
            "model": {"name": "demo", "max_length": 64},
            "data": {"train": written(folder, f"shown-{seed}", [chat(row) for row in shown])},
            "adapter": {"kind": "none"},
            "training": {
                "max_steps": steps, "batch_size": 32, "gradient_accumulation": 1,
                "learning_rate": 1e-3, "scheduler": "constant", "warmup": 0, "optimizer": "adamw",
                "precision": "fp32", "seed": seed, "save_every": steps,
            },
        }
    )  # fmt: skip
    return Path(view.path) / "export" / "model"


def rewarded(
    seed: int, model: Path, train: str, held_out: str, rewards: list[Any], options: argparse.Namespace
) -> Any:
    """A run of GRPO from the warmed model."""
    return finished(
        {
            "name": f"add-{seed}",
            "model": {"name": str(model), "max_length": 64},
            "data": {"train": train, "eval": held_out},
            "method": {
                "kind": "grpo", "rewards": rewards, "num_generations": options.generations,
                "max_completion_length": 4, "dynamic_sampling": options.exchange, "samples": 1,
            },
            "adapter": {"kind": "none"},
            "training": {
                "max_steps": options.steps, "batch_size": options.batch, "gradient_accumulation": 1,
                "learning_rate": options.rate, "scheduler": "constant_with_warmup", "warmup": 10,
                "optimizer": "adamw", "weight_decay": 0, "seed": seed,
                "precision": options.precision, "save_every": options.steps,
            },
            "eval": {"every": options.every, "batch_size": options.measured},
        }
    )  # fmt: skip


EXACT = {"name": "exact_answer", "strict": True}
NUMBER = {"name": "format", "pattern": r"^\d{1,3}$"}
REWARDS = {"right": [EXACT, NUMBER | {"weight": 0}], "control": [EXACT | {"weight": 0}, NUMBER]}
"""Part -> its rewards; one of weight 0 is measured and teaches nothing."""


def measure(seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy by step, of each part that is asked for, and the share of numbers among the answers."""
    shown, train, held_out = rows_of(seed, options.largest, options.measured)
    warm_steps = options.warm_steps.split(",")
    model = warmed(seed, folder, shown, int(warm_steps[min(seed, len(warm_steps) - 1)]))
    files = written(folder, f"train-{seed}", train), written(folder, f"held-out-{seed}", held_out)
    names = ("torch", "transformers", "trl", "peft")
    versions = ", ".join(f"{one} {metadata.version(one)}" for one in names)
    where = f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
    found: dict[str, Any] = {"seed": seed, "prompts": len(train), "where": where}
    for part in options.parts.split(","):
        view = rewarded(seed, model, *files, REWARDS[part], options)
        found[part] = {
            "accuracy": [(event.step, event.metrics["rewards/exact_answer"]) for event in view.evals],
            "numbers": [(event.step, event.metrics["rewards/format"]) for event in view.evals],
            "seconds": sum(step.seconds for step in view.steps),
            "device": view.plan.resolved.machine,
        }
    return found


def merged(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parts of one seed that were measured apart, in one."""
    seeds: dict[int, dict[str, Any]] = {}
    for one in results:
        seeds[one["seed"]] = seeds.get(one["seed"], {}) | one
    return [seeds[seed] for seed in sorted(seeds)]


def table(results: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Markdown."""
    lines = [
        "| seed | prompts | rewarded for | accuracy before | after | numbers before | after | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        for part, what in (("right", "the right answer"), ("control", "a number")):
            if part not in one:
                continue
            cells = [
                f"{one[part][name][place][1]:.3f}" for name in ("accuracy", "numbers") for place in (0, -1)
            ]
            lines.append(
                f"| {one['seed']} | {one['prompts']:,} | {what} | {' | '.join(cells)} | "
                f"{one[part]['seconds']:.0f} s |"
            )
    lines += ["", "Accuracy by step, rewarded for the right answer:", ""]
    for one in results:
        curve = ", ".join(f"{step}: {value:.3f}" for step, value in one["right"]["accuracy"])
        lines.append(f"- seed {one['seed']}: {curve}")
    lines += [
        "",
        f"Each accuracy is of {options.measured} sums of two numbers from 0 to {options.largest}, answered "
        f"greedily; a step is {options.batch} answers in groups of {options.generations}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--parts", default="right,control")
    parser.add_argument("--largest", type=int, default=99, help="number of a sum")
    parser.add_argument("--measured", type=int, default=300, help="sums that are held out, in either order")
    parser.add_argument("--warm-steps", default="150", help="of seed 0, 1, ...; the last for all others")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--exchange", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", type=Path, help="JSON lines that were printed before; measures nothing")
    options = parser.parse_args()
    if options.read is None:
        results = []
        with tempfile.TemporaryDirectory(prefix="whet-addition-") as name:
            os.environ["WHET_HOME"] = str(Path(name) / "home")
            for seed in options.seeds.split(","):
                results.append(measure(int(seed), Path(name), options))
                print(json.dumps(results[-1]), flush=True)
    else:
        lines = options.read.read_text(encoding="utf-8").splitlines()
        results = [json.loads(line) for line in lines if line.startswith("{")]
    results = merged(results)
    if "right" not in results[0]:
        return
    today = datetime.datetime.now(datetime.UTC).date()
    command = " ".join(
        f"--{key.replace('_', '-')} {value}"
        for key, value in vars(options).items()
        if key not in ("out", "read", "parts")
    )
    text = (
        f"# Addition by rewards, the demo model, {today}\n\n{results[0]['right']['device']}, "
        f"{results[0]['where']}.\n"
        f"`python -P benchmarks/grpo_addition.py {command}`\n\n{table(results, options)}\n"
    )
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
