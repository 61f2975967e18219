"""Does the demo model learn to add by rewards alone? Accuracy on pairs of numbers it never saw, by seed.

    PYTHONPATH=src python -P benchmarks/grpo_addition.py --seeds 0,1,2 --out FILE.md

The demo model has no arithmetic. A short fine-tuning on a thousand sums shows it what an answer looks like
and leaves it wrong on most others. Then GRPO: it answers other sums, and the reward says right or wrong,
nothing else. Neither stage sees the pairs that accuracy is measured on, in either order. The control is the
same run rewarded for writing a number at all.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

LARGEST = 99
HELD_OUT, SHOWN = 500, 1000
Rows = list[dict[str, str]]


def rows_of(seed: int) -> tuple[Rows, Rows, Rows]:
    """Sums to fine-tune on, to be rewarded on, and to be measured on: three sets of unordered pairs."""
    draw = random.Random(seed)
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(a, LARGEST + 1)]
    draw.shuffle(pairs)
    held_out = [draw.choice(((a, b), (b, a))) for a, b in pairs[:HELD_OUT]]
    others = [pair for a, b in pairs[HELD_OUT:] for pair in dict.fromkeys(((a, b), (b, a)))]
    draw.shuffle(others)
    sums = [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in [*held_out, *others]]
    return sums[HELD_OUT : HELD_OUT + SHOWN], sums[HELD_OUT + SHOWN :], sums[:HELD_OUT]


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
    for _ in api.follow(run):
        pass
    view = api.run(run)
    assert view.status == "finished", view.state.error
    return view


def warmed(seed: int, folder: Path, shown: Rows, options: argparse.Namespace) -> Path:
    """The demo model after a short fine-tuning on sums, all of its weights trained."""
    view = finished(
        {
            "name": f"warm-{seed}",
            "model": {"name": "demo", "max_length": 64},
            "data": {"train": written(folder, f"shown-{seed}", [chat(row) for row in shown])},
            "adapter": {"kind": "none"},
            "training": {
                "max_steps": options.warm_steps, "batch_size": 32, "gradient_accumulation": 1,
                "learning_rate": 1e-3, "scheduler": "constant", "warmup": 0, "optimizer": "adamw",
                "precision": "fp32", "seed": seed, "save_every": options.warm_steps,
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
                "max_completion_length": 6, "samples": 1,
            },
            "adapter": {"rank": 64, "alpha": 64, "target_modules": "all-linear"},
            "training": {
                "max_steps": options.steps, "batch_size": options.batch, "gradient_accumulation": 1,
                "learning_rate": options.rate, "scheduler": "constant_with_warmup", "warmup": 10,
                "optimizer": "adamw", "weight_decay": 0, "seed": seed, "save_every": options.steps,
            },
            "eval": {"every": options.every, "batch_size": HELD_OUT},
        }
    )  # fmt: skip


EXACT = {"name": "exact_answer", "strict": True}
NUMBER = {"name": "format", "pattern": r"^\d+$"}


def measure(seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy before and after, with the answer rewarded and with the format rewarded."""
    shown, train, held_out = rows_of(seed)
    model = warmed(seed, folder, shown, options)
    files = written(folder, f"train-{seed}", train), written(folder, f"held-out-{seed}", held_out)
    right = rewarded(seed, model, *files, [EXACT, NUMBER | {"weight": 0}], options)
    control = rewarded(seed, model, *files, [EXACT | {"weight": 0}, NUMBER], options)
    curve = [(event.step, event.metrics["rewards/exact_answer"]) for event in right.evals]
    return {
        "seed": seed,
        "prompts": len(train),
        "curve": curve,
        "before": curve[0][1],
        "after": curve[-1][1],
        "seconds": sum(step.seconds for step in right.steps),
        "control": [control.evals[place].metrics["rewards/exact_answer"] for place in (0, -1)],
        "control_format": [control.evals[place].metrics["rewards/format"] for place in (0, -1)],
    }


def table(results: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Markdown."""
    lines = [
        "| seed | prompts | accuracy before | after | training | control: accuracy | control: numbers |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        control = " → ".join(f"{value:.3f}" for value in one["control"])
        numbers = " → ".join(f"{value:.3f}" for value in one["control_format"])
        lines.append(
            f"| {one['seed']} | {one['prompts']:,} | {one['before']:.3f} | {one['after']:.3f} | "
            f"{one['seconds']:.0f} s | {control} | {numbers} |"
        )
    lines += ["", "Accuracy on the held-out sums by step:", ""]
    for one in results:
        curve = ", ".join(f"{step}: {value:.3f}" for step, value in one["curve"])
        lines.append(f"- seed {one['seed']}: {curve}")
    lines += [
        "",
        f"Each accuracy is of {HELD_OUT} sums of two numbers from 0 to {LARGEST}, answered greedily; a step "
        f"is {options.batch} answers in groups of {options.generations}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--warm-steps", type=int, default=180)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whet-addition-") as name:
        os.environ["WHET_HOME"] = str(Path(name) / "home")
        results = []
        for seed in options.seeds.split(","):
            results.append(measure(int(seed), Path(name), options))
            print(json.dumps(results[-1]), flush=True)
    from whet.engine.hardware import inspect_machine

    versions = ", ".join(f"{one} {metadata.version(one)}" for one in ("torch", "transformers", "trl", "peft"))
    today = datetime.datetime.now(datetime.UTC).date()
    command = " ".join(
        f"--{key.replace('_', '-')} {value}" for key, value in vars(options).items() if key != "out"
    )
    text = (
        f"# Addition by rewards, the demo model, {today}\n\n{inspect_machine().label}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}.\n"
        f"`python -P benchmarks/grpo_addition.py {command}`\n\n{table(results, options)}\n"
    )
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
