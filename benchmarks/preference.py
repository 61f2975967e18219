"""DPO by whet and by TRL with PEFT alone: the same checkpoint, pairs, adapter and order, one process each.

    python -P benchmarks/preference.py --out benchmarks/results/preference.md
    python -P benchmarks/preference.py --model tiny --steps 6 --warm 2

Weights and tokens are random, so losses say only that both learn alike, by heart. A pair is a prompt with two
answers; tokens are those of both rows, padding excluded.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

# A folder of its own: in this one, kernels.py would hide a package that transformers looks for.
sys.path.insert(0, str(Path(__file__).resolve().parent / "training"))

from models import SHAPES, make
from rows import ALPHA, GIB, RANK, SEED, TARGETS

HERE = Path(__file__).resolve().parent
STACKS = ("whet", "trl", "whet recomputing", "trl recomputing")
"""whet's trainer of a run, TRL's DPOTrainer; then both with activations computed again."""
CYCLE = 4
"""Steps after which the same pairs come again, so that there is something to learn."""
FIRST_ID = 3
"""The ids before are the tokenizer's special ones."""


def pairs_of(options: argparse.Namespace) -> list[dict[str, list[int]]]:
    """Rows of tokens, half a row's length up to one and a half, prompt and answer about the same."""
    import numpy as np

    random = np.random.default_rng(7)
    vocabulary = SHAPES[options.model]["vocab_size"]

    def some(low: float, high: float) -> list[int]:
        count = options.length // 2 if options.fixed else int(random.integers(int(low), int(high) + 1))
        return random.integers(FIRST_ID, vocabulary, max(2, count)).tolist()

    half = options.length / 2
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    distinct = [{name: some(half / 2, 1.5 * half) for name in names} for _ in range(CYCLE * options.batch)]
    return [distinct[number % len(distinct)] for number in range(options.steps * options.batch)]


def tokens_of(pair: dict[str, list[int]]) -> int:
    return 2 * len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"])


# --- one stack, in this process


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load, train, measure."""
    import torch
    from transformers import TrainerCallback

    cuda = torch.cuda.is_available()
    model, tokenizer = _adapted(options, cuda)
    note = {}
    with tempfile.TemporaryDirectory() as output:
        trainer = _trainer(options, model, tokenizer, output, note)
        marks: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                if cuda:
                    torch.cuda.synchronize()
                marks.append(time.perf_counter())

        trainer.add_callback(Clock())
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    seconds = [after - before for before, after in pairwise(marks[options.warm - 1 :])]
    rows, batch = pairs_of(options), options.batch
    steps = range(options.warm, options.steps)
    tokens = [sum(map(tokens_of, rows[step * batch : (step + 1) * batch])) for step in steps]
    return {
        "rate": statistics.median(count / each for count, each in zip(tokens, seconds, strict=True)),
        "step": statistics.median(seconds),
        "peak": torch.cuda.max_memory_allocated() / GIB if cuda else None,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        **note,
    }


def _adapted(options: argparse.Namespace, cuda: bool) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    dtype = torch.bfloat16 if cuda else torch.float32
    placed: dict[str, Any] = {"device_map": {"": 0}} if cuda else {}
    model = AutoModelForCausalLM.from_pretrained(
        options.folder, dtype=dtype, attn_implementation="sdpa", **placed
    )
    set_seed(SEED)
    adapter = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0, bias="none", target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, adapter), AutoTokenizer.from_pretrained(options.folder)


def _trainer(
    options: argparse.Namespace, model: Any, tokenizer: Any, output: str, note: dict[str, Any]
) -> Any:
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    cuda, rows = torch.cuda.is_available(), pairs_of(options)
    recomputes = options.stack == "trl recomputing"
    settings = DPOConfig(
        output_dir=output, per_device_train_batch_size=options.batch, gradient_accumulation_steps=1,
        max_steps=options.steps, learning_rate=2e-4, warmup_steps=2, lr_scheduler_type="linear",
        optim="adamw_torch", weight_decay=0.0, seed=SEED, bf16=cuda, use_cpu=not cuda, max_length=None,
        train_sampling_strategy="sequential", gradient_checkpointing=recomputes, remove_unused_columns=False,
        gradient_checkpointing_kwargs={"use_reentrant": False} if recomputes else None, logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip

    class Tokens(Dataset):
        """Already what TRL's constructor would make of texts."""

        def map(self, *_: Any, **__: Any) -> Any:
            return self

    ready = Tokens(Dataset.from_list(rows).data)
    given = {"args": settings, "processing_class": tokenizer, "train_dataset": ready}
    if options.stack.startswith("trl"):
        return DPOTrainer(model, **given)
    from whet.engine.methods.preference.trainers import ComparedTrainer, compared_collator
    from whet.engine.models.fast_path import apply_fast_path

    report = apply_fast_path(model, torch.bfloat16 if cuda else torch.float32)
    note |= {"fused": str(report), **_follow(options, model, rows)}
    return ComparedTrainer(
        model,
        data_collator=compared_collator(tokenizer.pad_token_id),
        emit=lambda _: None,
        keep=1,
        **given,
    )


def _follow(options: argparse.Namespace, model: Any, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Put the planner's schedule in force; what it expects."""
    import torch

    from whet.engine.calibration import ceilings_of
    from whet.engine.hardware import inspect_machine
    from whet.engine.methods.sft.scheduled import follow_schedule
    from whet.engine.models.facts import read_model_facts
    from whet.engine.models.families import Unsupported
    from whet.engine.models.fast_path import program_of
    from whet.engine.models.fast_shape import Held, fast_shape
    from whet.engine.models.fast_time import Rows
    from whet.engine.recipe import AdapterSection
    from whet.engine.scheduler import Room, choose_schedule

    cuda, machine, program = torch.cuda.is_available(), inspect_machine(), program_of(model)
    dtype = "bf16" if cuda else "fp32"
    held = Held(
        compute_dtype=dtype, base_precision=dtype, optimizer="adamw", device="cuda" if cuda else "cpu"
    )
    section = AdapterSection(rank=RANK, alpha=ALPHA, target_modules=TARGETS)
    shape = fast_shape(read_model_facts(Path(options.folder)), section, held)
    if program is None or isinstance(shape, Unsupported):
        raise SystemExit(f"this shape is not on the fast path: {shape}")
    names = ("chosen_ids", "rejected_ids")
    lengths = [len(row["prompt_ids"]) + len(row[name]) for row in rows for name in names]
    answers = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    seen = Rows.of_lengths(lengths, 2 * options.batch, answers / sum(lengths))
    room = Room(machine.gpus[0].memory_total if machine.gpus else machine.ram_total)
    recompute = "on" if options.stack == "whet recomputing" else "auto"
    schedule = choose_schedule(shape, seen, room, ceilings_of(machine), recompute, forwards=1)
    follow_schedule(program, schedule)
    return {
        "schedule": schedule.summary(),
        "predicted_peak": schedule.peak_bytes / GIB,
        "predicted_step": schedule.step_seconds,
    }


# --- all of them


def run_stack(stack: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure one stack in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="whet-benchmark-") as name:
        into, log = Path(name) / "result.json", Path(name) / "log.txt"
        words = [sys.executable, "-P", str(Path(__file__).resolve()), "--model", options.model]
        words += ["--stack", stack, "--into", str(into), "--folder", str(folder)]
        for key in ("batch", "length", "steps", "warm"):
            words += [f"--{key}", str(getattr(options, key))]
        words += ["--fixed"] if options.fixed else []
        paths = [str(HERE.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
        with log.open("wb") as file:
            try:
                code = subprocess.run(
                    words, stdout=file, stderr=subprocess.STDOUT, env=environment, timeout=options.limit
                ).returncode
            except subprocess.TimeoutExpired:
                code = -1
        if code:
            print(log.read_text(encoding="utf-8", errors="replace")[-3000:], file=sys.stderr)
            return {"error": f"ended with code {code}"}
        return json.loads(into.read_text(encoding="utf-8"))


def report(results: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """A table, and the losses below it."""
    device = next((one["device"] for one in results.values() if "device" in one), "none")
    ragged = "of one length" if options.fixed else "of half to one and a half that"
    lines = [
        f"## DPO, {options.model}, {options.batch} pairs of about {options.length} tokens a row, {ragged}",
        f"{datetime.date.today()}, {device}, medians of steps {options.warm + 1} to {options.steps}. "
        f"`python -P benchmarks/preference.py {' '.join(sys.argv[1:])}`",
        "",
        "| stack | tokens/s | ms a step | peak GiB | planner: ms, GiB |",
        "|---|---|---|---|---|",
    ]
    for stack, one in results.items():
        if "error" in one:
            lines.append(f"| {stack} | {one['error']} | | | |")
            continue
        step, gib = one.get("predicted_step"), one.get("predicted_peak")
        expected = "" if gib is None else f"{'-' if step is None else f'{step * 1000:.0f}'}, {gib:.2f}"
        peak = "-" if one["peak"] is None else f"{one['peak']:.2f}"
        lines.append(f"| {stack} | {one['rate']:,.0f} | {one['step'] * 1000:.1f} | {peak} | {expected} |")
    lines.append("")
    for stack, one in results.items():
        lines.append(f"- {stack}: losses {' '.join(f'{loss:.4f}' for loss in one.get('losses', []))}")
        if "fused" in one:
            lines[-1] += f"; {one['fused']}; {one['schedule']}"
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure; 1 where a stack did not come to an end."""
    options = _options()
    if options.into is not None:
        options.into.write_text(json.dumps(measure(options)), encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory(prefix="whet-benchmark-") as name:
        folder = Path(name) / options.model
        make(options.model, folder)
        results = {}
        for stack in options.stacks.split(","):
            results[stack] = run_stack(stack, options, folder)
            shown = {key: value for key, value in results[stack].items() if key != "losses"}
            print(f"{stack}: {shown}", file=sys.stderr, flush=True)
    text = report(results, options)
    print(text)
    if options.out is not None:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(text)
    return int(any("error" in one for one in results.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=SHAPES, default="0.6b")
    parser.add_argument("--stacks", default=",".join(STACKS), help=f"of {', '.join(STACKS)}")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a prompt with its answer, mean")
    parser.add_argument("--fixed", action="store_true", help="all rows of that length")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--warm", type=int, default=6, help="steps before the measured ones")
    parser.add_argument("--limit", type=float, default=120, help="seconds of one stack")
    parser.add_argument("--out", type=Path, help="file that the table is appended to")
    parser.add_argument("--stack", choices=STACKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
