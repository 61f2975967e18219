"""Training a model that sees beside TRL's SFTTrainer: the same weights, rows, adapter and settings, on a CPU.

    python -P benchmarks/vision.py --out benchmarks/results          one thread a side, about two minutes

A LLaVA shape with random weights, so speed and memory are measured, not what is learnt. Each side is a
process of its own, and seconds are those of its own thread: what else runs on the machine hardly counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE.parent / "tests"), str(HERE / "by_method")]

STEPS, WARM, BATCH, ROWS = 10, 3, 4, 40
TEXT = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 16384}  # fmt: skip
TOWER = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8,
         "image_size": 112, "patch_size": 14, "model_type": "clip_vision_model"}  # fmt: skip


def main() -> int:
    """Both sides, and a page of what they took."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path)
    options.add_argument("--side", choices=("whet", "trl"))
    options.add_argument("--folder", type=Path)
    asked = options.parse_args()
    if asked.side:
        print(json.dumps({"whet": whet, "trl": trl}[asked.side](asked.folder)))
        return 0
    with tempfile.TemporaryDirectory(prefix="whet-vision-") as name:
        folder = Path(name)
        make(folder)
        found = {side: measure(side, folder) for side in ("whet", "trl")}
    text = page(found)
    print(text)
    if asked.out is not None:
        day = datetime.now(UTC).date().isoformat()
        (asked.out / f"vision-cpu-{day}.md").write_text(text, encoding="utf-8")
    return 0


def measure(side: str, folder: Path) -> dict[str, Any]:
    """One side in a process of its own, with one thread."""
    command = [sys.executable, "-P", __file__, "--side", side, "--folder", str(folder)]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WHET_HOME": str(folder / "home"), "CI": "true"}
    done = subprocess.run(
        command,
        env=os.environ | quiet,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def make(folder: Path) -> None:
    """Model and rows."""
    from PIL import Image
    from seeing import make_seeing

    make_seeing(folder / "model", TEXT, TOWER)
    draw = random.Random(0)
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as out:
        for number in range(ROWS):
            Image.effect_noise((160, 120), 60 + number).convert("RGB").save(folder / f"{number}.png")
            words = [f"w{draw.randrange(999)}" for _ in range(24)]
            row = {
                "image": f"{number}.png",
                "prompt": " ".join(words[:16]),
                "completion": " ".join(words[16:]),
            }
            out.write(json.dumps(row) + "\n")


def clock() -> Any:
    """A callback that notes the thread's seconds at the end of each step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *args: Any, **given: Any) -> None:
            self.ends.append(time.process_time())

    return Clock()


def told(ends: list[float], losses: list[float]) -> dict[str, Any]:
    """What a side measured."""
    seconds = (ends[-1] - ends[WARM - 1]) / (len(ends) - WARM)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak": peak, "losses": losses}


def whet(folder: Path) -> dict[str, Any]:
    """A run's own training."""
    from support.tiny_runs import create_run, events_of, next_attempt
    from transformers.utils import logging

    from whet.engine.methods.training import train
    from whet.engine.methods.vision.job import VisionTraining
    from whet.engine.recipe import Recipe

    logging.disable_progress_bar()
    recipe = Recipe.model_validate(
        {
            "model": {"name": str(folder / "model"), "max_length": 512},
            "data": {"train": str(folder / "rows.jsonl")},
            "method": {"kind": "vision", "image_min": 1, "image_max": 1000, "finetune_vision_layers": False},
            "adapter": {"rank": 16, "alpha": 16},
            "training": {"max_steps": STEPS, "batch_size": BATCH, "gradient_accumulation": 1, "warmup": 0,
                         "learning_rate": 1e-4, "optimizer": "adamw", "threads": 1, "save_every": STEPS,
                         "gradient_checkpointing": "off"},
            "accept": ["D16"],
        }
    )  # fmt: skip
    run, timer = create_run(recipe), clock()

    def timed(context: Any) -> VisionTraining:
        training = VisionTraining(context)
        training.trainer.add_callback(timer)
        return training

    train(next_attempt(run), timed)
    return told(timer.ends, [event.loss for event in events_of(run) if event.type == "step"])


def trl(folder: Path) -> dict[str, Any]:
    """TRL's SFTTrainer with transformers' processor, on answers alone."""
    import torch
    from seeing import trl_trainer
    from transformers import AutoModelForImageTextToText

    torch.set_num_threads(1)
    read = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    settings = {
        "output_dir": str(folder / "trl"), "max_steps": STEPS, "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-4, "optim": "adamw_torch", "lr_scheduler_type": "linear", "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False,
        "seed": 3407, "gradient_checkpointing": False,
    }  # fmt: skip
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
    trainer = trl_trainer(model, folder / "model", folder, read, settings)
    timer = clock()
    trainer.add_callback(timer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return told(timer.ends, losses)


def page(found: dict[str, dict[str, Any]]) -> str:
    """As a page."""
    ours, theirs = found["whet"], found["trl"]
    lines = [
        "# Vision beside TRL, on a CPU",
        "",
        f"{platform.machine()}, one thread, fp32; a LLaVA shape (4 + 4 layers of 256, vocabulary 16,384), "
        f"images of 64 tokens, {BATCH} rows a step, LoRA of rank 16 on the language model, losses on answers "
        "alone. Seconds of the process's own thread. `python -P benchmarks/vision.py`",
        "",
        "| | seconds a step | peak memory, MiB | first loss |",
        "|---|---:|---:|---:|",
    ]
    for name, one in (("whet", ours), ("TRL", theirs)):
        lines.append(
            f"| {name} | {one['seconds']:.3f} | {one['peak'] / 2**20:,.0f} | {one['losses'][0]:.4f} |"
        )
    lines += [
        "",
        f"Speed {theirs['seconds'] / ours['seconds']:.2f} times TRL's. The layers are the same; whet "
        "multiplies the head with the places before answers alone, TRL with every token, those of images "
        "too. The head is as large as the layers here: the larger a model is beside its vocabulary, the "
        "smaller the difference.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
