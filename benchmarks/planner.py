"""The planner's predictions beside what a step really takes: peak of the allocator, and seconds.

    PYTHONPATH=src python -P benchmarks/planner.py --out benchmarks/results/planner.md
    PYTHONPATH=src python -P benchmarks/planner.py --cases 8b-bf16,0.6b-bf16 --calibration FILE
    PYTHONPATH=src python -P benchmarks/planner.py --cases "" --limits 24,48,80,141   # longest row of 8B NF4

Each case runs the real program, loss and optimizer of a model with random weights made on the device, in a
process of its own, its memory capped where the case says so. The GPU is calibrated first unless a file with
an earlier calibration is given (it is written there otherwise).
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import psutil

GB = 10**9
GIB = 2**30

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "tie_word_embeddings": False,
    },
    "1b": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
        "max_position_embeddings": 131072, "tie_word_embeddings": True,
    },
    "0.6b": {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 40960, "tie_word_embeddings": True,
    },
    "gemma2-2b": {
        "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
}  # fmt: skip
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHAT = (2048, 180, 350, 700, 95, 420, 1300, 240)
"""Lengths of rows as chats have them."""


@dataclass(frozen=True)
class Case:
    """One run.

    Args:
        shape: of :data:`SHAPES`.
        base: precision of the frozen weights.
        lengths: of the rows of an optimizer step.
        cap: GB that the process may take; None is the whole GPU.
        recompute: what the planner may choose.
        forced: fields of the schedule that are set after the planner chose.
    """

    shape: str
    base: str = "bf16"
    lengths: tuple[int, ...] = (2048,) * 8
    cap: float | None = None
    recompute: Literal["auto", "on", "off"] = "auto"
    forced: tuple[tuple[str, Any], ...] = ()
    rank: int = 16
    steps: int = 4


ALL = (("recompute_mlp", 32), ("recompute_attention", 32))
CASES: dict[str, Case] = {
    "8b-bf16": Case("8b"),
    "8b-bf16-mlp-again": Case("8b", forced=(("recompute_mlp", 32),)),
    "8b-bf16-attention-again": Case("8b", forced=(("recompute_attention", 32),)),
    "8b-bf16-all-again": Case("8b", recompute="on"),
    "8b-bf16-half-again": Case("8b", forced=(("recompute_mlp", 16), ("recompute_attention", 8))),
    "8b-bf16-2x2048": Case("8b", lengths=(2048,) * 2),
    "8b-bf16-chat": Case("8b", lengths=CHAT),
    "8b-bf16-24gb": Case("8b", cap=24),
    "8b-bf16-48gb": Case("8b", cap=48),
    "8b-bf16-80gb": Case("8b", cap=80),
    "8b-nf4": Case("8b", "nf4"),
    "8b-nf4-24gb": Case("8b", "nf4", cap=24),
    "8b-nf4-32k": Case("8b", "nf4", lengths=(32768,), cap=24, steps=2),
    "8b-nf4-32k-offload": Case("8b", "nf4", lengths=(32768,), steps=2,
                               forced=(*ALL, ("offload", 32), ("chunk", 4096))),
    "1b-bf16": Case("1b"),
    "0.6b-bf16": Case("0.6b"),
    "0.6b-bf16-2x2048": Case("0.6b", lengths=(2048,) * 2),
    "0.6b-bf16-chat": Case("0.6b", lengths=CHAT),
    "0.6b-bf16-all-again": Case("0.6b", recompute="on"),
    "0.6b-nf4": Case("0.6b", "nf4"),
    "gemma2-2b-bf16": Case("gemma2-2b", lengths=(2048,) * 4),
}  # fmt: skip
USUAL = (
    "8b-bf16,8b-bf16-mlp-again,8b-bf16-all-again,8b-bf16-chat,8b-bf16-24gb,8b-bf16-48gb,8b-nf4,8b-nf4-24gb,"
    "8b-nf4-32k,8b-nf4-32k-offload,0.6b-bf16,0.6b-bf16-2x2048,0.6b-bf16-chat,gemma2-2b-bf16"
)


# --- one case, in a process of its own


@dataclass
class Prediction:
    """What the planner says of a case before anything is built."""

    schedule: Any
    lengths: tuple[int, ...]
    vocabulary: int
    figures: dict[str, Any]


def predict(case: Case, cap: int, calibration: Path, longest: bool) -> Prediction:
    """Choose a schedule for ``cap`` bytes, and what the step at hand should take under it."""
    from whet.engine.calibration import Ceilings
    from whet.engine.models.facts import read_model_facts
    from whet.engine.models.families import Unsupported
    from whet.engine.models.fast_memory import allocated, choice_of, fast_peak
    from whet.engine.models.fast_shape import Held, fast_shape
    from whet.engine.models.fast_time import Rows, step_time
    from whet.engine.recipe import AdapterSection
    from whet.engine.scheduler import Room, choose_schedule, longest_of

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPES[case.shape]))
        facts = read_model_facts(Path(folder))
        adapter = AdapterSection(rank=case.rank, alpha=case.rank)
        shape = fast_shape(facts, adapter, Held(base_precision=case.base))
    if isinstance(shape, Unsupported):
        raise SystemExit(shape.reason)
    room = Room(cap, int(psutil.virtual_memory().available))
    lengths = (longest_of(shape, room),) if longest else case.lengths
    rows = Rows.of_lengths(lengths, len(lengths))
    ceilings = Ceilings.model_validate_json(calibration.read_text())
    schedule = choose_schedule(shape, rows, room, ceilings, case.recompute)
    schedule = schedule.model_copy(update=dict(case.forced))
    choice = choice_of(schedule, rows.supervised, rows.longest)
    # The step at hand, rather than the worst that the budget lets through.
    fullest = replace(choice, tokens=min(schedule.budget, sum(lengths)))
    clock = step_time(shape, rows, choice, ceilings)
    figures = {
        "schedule": schedule.summary(),
        "budget": schedule.budget,
        "tokens": sum(lengths),
        "expected_held": sum(shape.static.values()),
        "expected_peak": allocated(shape, fast_peak(shape, fullest)),
        "expected_seconds": clock.total,
        "parts": asdict(clock),
    }
    return Prediction(schedule, lengths, shape.vocabulary, figures)


def run_case(case: Case, calibration: Path, longest: bool = False) -> dict[str, Any]:
    """Predict, build, measure. With ``longest`` the row is the longest that the planner says fits."""
    import torch

    from whet.engine.methods.flat_optimizer import FlatAdamW
    from whet.engine.methods.sft.fast_step import FastStep
    from whet.engine.methods.sft.scheduled import follow
    from whet.engine.models.fast_path import apply_fast_path, program_of

    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(0).total_memory
    cap = total if case.cap is None else min(total, int(case.cap * GB))
    torch.cuda.set_per_process_memory_fraction(cap / total)
    predicted = predict(case, cap, calibration, longest)
    torch.manual_seed(0)
    model = build(case, device)
    apply_fast_path(model, torch.bfloat16)
    program = program_of(model)
    assert program is not None and program.report.complete, str(program and program.report)
    optimizer = FlatAdamW([param for param in model.parameters() if param.requires_grad], lr=1e-4, bits=8)
    step = FastStep(program, device, budget=predicted.schedule.budget)
    follow(step, predicted.schedule)
    documents = token_rows(predicted.lengths, predicted.vocabulary)
    supervised = sum(len(row.labels) - 1 for row in documents)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    def once() -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = float(step.train(documents, supervised).loss)
        optimizer.clip_(1.0)
        optimizer.step()
        torch.cuda.synchronize()
        assert loss == loss, "the loss is not a number"
        return time.perf_counter() - began

    times = [once() for _ in range(case.steps)]
    return predicted.figures | {
        "held": held,
        "peak": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "seconds": statistics.median(times[len(times) // 2 :]),  # the first compile and capture
        "times": times,
    }


def build(case: Case, device: Any) -> Any:
    """The model with random weights on the device, LoRA on all linear layers."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from whet.engine.models.adapters import add_adapter
    from whet.engine.recipe import AdapterSection

    values = dict(SHAPES[case.shape])
    config = CONFIG_MAPPING[values.pop("model_type")](**values)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    layers = {name: part for name, part in model.named_modules() if name.rsplit(".", 1)[-1] in LINEAR}
    if case.base == "nf4":
        for name, part in layers.items():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, in_nf4(part, device))
        torch.cuda.empty_cache()
    return add_adapter(model, AdapterSection(rank=case.rank, alpha=case.rank), seed=0)


def in_nf4(linear: Any, device: Any) -> Any:
    """The same layer as bitsandbytes holds it."""
    import bitsandbytes

    options = {"quant_type": "nf4", "compress_statistics": True}
    layer = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=linear.weight.dtype,
        device="meta", **options,
    )  # fmt: skip
    weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, **options)
    layer.weight = weight.to(device)
    return layer


def token_rows(lengths: Sequence[int], vocabulary: int) -> list[Any]:
    import numpy as np

    from whet.engine.methods.sft.packed_steps import TokenRow

    draw = np.random.default_rng(0)
    rows = []
    for length in lengths:
        ids = draw.integers(3, vocabulary, length)
        labels = ids.astype(np.int64)
        labels[0] = -100
        rows.append(TokenRow(ids, labels))
    return rows


def _child(pipe: Connection, case: Case, calibration: Path, longest: bool) -> None:
    try:
        pipe.send(run_case(case, calibration, longest))
    except Exception as error:  # a case that fails costs its own row
        pipe.send({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


def in_process(case: Case, calibration: Path, longest: bool = False) -> dict[str, Any]:
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_child, args=(theirs, case, calibration, longest))
    process.start()
    theirs.close()
    try:
        return dict(ours.recv())
    except EOFError:
        process.join()
        return {"error": f"the process ended with code {process.exitcode}"}
    finally:
        process.join()


# --- the table


HEAD = (
    "case", "tokens", "schedule", "held GiB", "predicted", "peak GiB", "predicted", "off by",
    "s a step", "predicted", "off by", "tokens/s",
)  # fmt: skip


def row(name: str, found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return [name, "", found["error"], *[""] * (len(HEAD) - 3)]
    seconds, expected = found["seconds"], found["expected_seconds"]
    return [
        name,
        f"{found['tokens']:,}",
        f"{found['schedule']}, {found['budget']:,} at once",
        f"{found['held'] / GIB:.2f}",
        f"{found['expected_held'] / GIB:.2f}",
        f"{found['peak'] / GIB:.2f}",
        f"{found['expected_peak'] / GIB:.2f}",
        f"{found['expected_peak'] / found['peak'] - 1:+.1%}",
        f"{seconds:.4f}",
        f"{expected:.4f}",
        f"{expected / seconds - 1:+.1%}",
        f"{found['tokens'] / seconds:,.0f}",
    ]


def calibrated(path: Path) -> Path:
    """The file of a calibration, measured now in a process of its own if it is not there."""
    if not path.is_file():
        import subprocess
        import sys

        began = time.perf_counter()
        command = [sys.executable, "-P", "-m", "whet.engine.calibration_process"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        path.write_text(done.stdout.splitlines()[-1] + "\n")
        print(f"calibrated in {time.perf_counter() - began:.1f} s", flush=True)
    print(path.read_text().strip(), flush=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", default=USUAL, help=f"of {', '.join(CASES)}")
    parser.add_argument("--limits", default="", help="GB to find the longest sequence of 8B NF4 in")
    parser.add_argument(
        "--limit-steps", type=int, default=2, help="steps of those; the first also compiles and pins memory"
    )
    parser.add_argument("--calibration", type=Path, default=Path(tempfile.gettempdir()) / "ceilings.json")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    calibration = calibrated(options.calibration)
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    print("\n".join(lines), flush=True)
    jobs = [(name, CASES[name], False) for name in options.cases.split(",") if name]
    for size in (float(part) for part in options.limits.split(",") if part):
        case = Case("8b", "nf4", cap=size, steps=options.limit_steps)
        jobs.append((f"8b-nf4 longest in {size:g} GB", case, True))
    for name, case, longest in jobs:
        found = in_process(case, calibration, longest)
        lines.append("| " + " | ".join(row(name, found)) + " |")
        print(lines[-1], flush=True)
        print(json.dumps({"case": name} | found), flush=True)
    if options.out:
        import torch

        name = torch.cuda.get_device_name()
        when = datetime.date.today().isoformat()
        head = f"# The planner beside measurement, {name}, torch {torch.__version__}, {when}\n\n"
        options.out.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
