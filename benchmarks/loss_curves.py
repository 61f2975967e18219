"""Loss curves side by side: transformers with PEFT and whet, from one start through the same rows.

    python -P benchmarks/loss_curves.py                       # what this machine can run
    python -P benchmarks/loss_curves.py --models demo --variants "whet fp32" --steps 20

All variants start from the same adapter, see the same rows in the same order and take AdamW steps at 2e-4
with warm-up. The measure is each step's loss against that of transformers in fp32, relatively. fp32 runs on
any machine; bf16, FP8 and nf4 are for a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import math
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "training"))

import torch
from measuring import versions
from models import make
from peft import LoraConfig, get_peft_model
from rows import ALPHA, RANK, SEED, TARGETS
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from whet.engine import SFTConfig, SFTTrainer
from whet.engine.demo import MODEL_DIR, TRAIN_FILE
from whet.engine.methods.sft.collation import PaddingCollator
from whet.engine.models.adapters import add_adapter, hold_trained_in_fp32
from whet.engine.models.fast_path import apply_fast_path
from whet.engine.models.loading import Precision, load_model
from whet.engine.recipe import AdapterSection

BATCH, ACCUMULATION = 4, 2
LONGEST = 512
REFERENCE = "hf fp32"
EXACT = 1e-5
"""Relative difference that fp32 may have at any step."""
NEAR = 1.05
"""A distance counts as no larger than another within this factor: a twentieth is luck of rounding."""
FP8_LOSS = 0.005
"""Relative difference that FP8's last losses may have from bf16's."""
LAST = 10
"""Steps whose mean is the last loss."""


@dataclass(frozen=True)
class Variant:
    """One way of training; ``precision`` is the frozen base's, ``beside`` the variant it is judged by."""

    stack: str
    precision: str
    beside: str = ""

    @property
    def compute(self) -> str:
        return "fp32" if self.precision == "fp32" else "bf16"


VARIANTS = {
    REFERENCE: Variant("hf", "fp32"),
    "hf fp32, eager": Variant("hf eager", "fp32"),
    "hf bf16": Variant("hf", "bf16"),
    "hf nf4": Variant("hf", "nf4"),
    "whet fp32": Variant("whet", "fp32", REFERENCE),
    "whet bf16": Variant("whet", "bf16", "hf bf16"),
    "whet fp8": Variant("whet", "fp8", "hf bf16"),
    "whet nf4": Variant("whet", "nf4", "hf nf4"),
}


def losses_of(
    variant: Variant, folder: Path, rows: list[dict[str, Any]], steps: int, start: Any
) -> list[float]:
    """The loss of every step.

    Args:
        folder: of the checkpoint.
        rows: tokenised, in the order of training.
        start: initial values of the adapter by their names; filled by the first call.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if variant.stack == "whet":
        model = _whet_model(variant, folder, device)
    else:
        model = _hf_model(variant, folder, device)
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if not start:
        start |= {name: param.detach().cpu().clone() for name, param in trained.items()}
    with torch.no_grad():
        for name, param in trained.items():
            param.copy_(start[name])  # PEFT rounds what it draws to the base's type
    if variant.stack == "whet":
        return _train_whet(variant, model, rows, steps, device)
    return _train_hf(variant, model, rows, steps, device)


def _hf_model(variant: Variant, folder: Path, device: str) -> Any:
    compute = torch.float32 if variant.compute == "fp32" else torch.bfloat16
    placed: dict[str, Any] = {"device_map": {"": device}} if device == "cuda" else {}
    if variant.precision == "nf4":
        placed["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    attention = "eager" if variant.stack == "hf eager" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=compute, attn_implementation=attention, **placed
    )
    adapter = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, adapter)
    hold_trained_in_fp32(adapted)
    return adapted


def _whet_model(variant: Variant, folder: Path, device: str) -> Any:
    handle = load_model(folder, Precision(device, variant.compute, variant.precision))
    section = AdapterSection(rank=RANK, alpha=ALPHA, target_modules=TARGETS)
    adapted = add_adapter(handle.model, section, SEED)
    report = apply_fast_path(adapted, handle.dtype)
    if not report.complete:
        raise SystemExit(f"{folder.name} in {variant.precision} is not all on the fast path: {report}")
    return adapted


def _settings(variant: Variant, steps: int, device: str, output: str) -> dict[str, Any]:
    return {
        "output_dir": output,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_steps": steps,
        "learning_rate": 2e-4,
        "warmup_steps": max(1, steps // 10),
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch",
        "weight_decay": 0.001,
        "seed": SEED,
        "bf16": device == "cuda" and variant.compute == "bf16",
        "use_cpu": device == "cpu",
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class _Recording(Trainer):
    """Keeps what each micro-batch adds to its step's loss, unrounded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parts: list[torch.Tensor] = []

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.parts.append(loss.float())
        return loss


def _train_hf(variant: Variant, model: Any, rows: Any, steps: int, device: str) -> list[float]:
    with tempfile.TemporaryDirectory() as output:
        trainer = _Recording(
            model=model,
            args=TrainingArguments(**_settings(variant, steps, device, output)),
            train_dataset=rows,
            data_collator=PaddingCollator(pad_id=0),
        )
        trainer.train()
    parts = torch.stack(trainer.parts).cpu().double()
    return parts.view(-1, ACCUMULATION).sum(1).tolist()


def _train_whet(variant: Variant, model: Any, rows: Any, steps: int, device: str) -> list[float]:
    seen: list[float] = []

    class Recording(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen.append(trainer.stats.loss)

    with tempfile.TemporaryDirectory() as output:
        settings = _settings(variant, steps, device, output)
        args = SFTConfig(**settings, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=rows,
            data_collator=PaddingCollator(pad_id=0),
            callbacks=[Recording()],
        )
        if trainer.fast is None:
            raise SystemExit(f"steps in {variant.precision} are not on the fast path: {trainer.plain_reason}")
        trainer.train()
    return seen


def chat_rows(folder: Path, count: int) -> Any:
    """The demo's conversations as the checkpoint's own tokenizer writes them, over and over."""
    from datasets import Dataset

    conversations = Dataset.from_json(str(TRAIN_FILE))["messages"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.apply_chat_template(list(each), tokenize=False) for each in conversations]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:LONGEST] for text in texts]
    chosen = [ids[index % len(ids)] for index in range(count)]
    return Dataset.from_dict({"input_ids": chosen, "labels": chosen})


def distances(losses: Iterable[float], reference: Iterable[float]) -> list[float]:
    """Relative difference at every step."""
    return [abs(loss - other) / abs(other) for loss, other in zip(losses, reference, strict=True)]


def rms(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))


def last(losses: list[float]) -> float:
    """Mean of the last steps."""
    return sum(losses[-LAST:]) / len(losses[-LAST:])


def verdict(name: str, curves: dict[str, list[float]]) -> str:
    """What is asked of a variant of whet's, and whether it holds."""
    variant, reference = VARIANTS[name], curves[REFERENCE]
    if not variant.beside or variant.beside not in curves:
        return ""
    mine = distances(curves[name], reference)
    if variant.precision == "fp32":
        return f"at most {EXACT:g} at every step: {_met(max(mine) <= EXACT)}"
    if variant.precision == "fp8":
        off = last(curves[name]) / last(curves[variant.beside]) - 1
        return f"last losses within {FP8_LOSS:.1%} of bf16's: {off:+.3%}, {_met(abs(off) <= FP8_LOSS)}"
    theirs = distances(curves[variant.beside], reference)
    farther = rms(mine) / rms(theirs)
    return f"no farther than {variant.beside}: {farther:.2f}× its rms, {_met(farther <= NEAR)}"


def _met(holds: bool) -> str:
    return "met" if holds else "not met"


def table(curves: dict[str, list[float]]) -> str:
    """A line a variant, then the relative difference at some steps."""
    reference = curves[REFERENCE]
    head = ["variant", "first loss", f"last {LAST} losses", "largest difference", "at step", "rms", "asked"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, losses in curves.items():
        far = distances(losses, reference)
        cells = [name, f"{losses[0]:.6f}", f"{last(losses):.6f}", f"{max(far):.2e}"]
        cells += [str(far.index(max(far)) + 1), f"{rms(far):.2e}", verdict(name, curves)]
        lines.append("| " + " | ".join(cells) + " |")
    steps = sorted({1, *range(10, len(reference) + 1, 10), len(reference)})
    lines += [
        "",
        "| difference at step | " + " | ".join(map(str, steps)) + " |",
        "|" + "---|" * (len(steps) + 1),
    ]
    for name, losses in curves.items():
        far = distances(losses, reference)
        lines.append(f"| {name} | " + " | ".join(f"{far[step - 1]:.1e}" for step in steps) + " |")
    return "\n".join(lines)


def main() -> int:
    """Train every variant on every model and print the tables; 1 where one of whet's misses what is asked."""
    cuda = torch.cuda.is_available()
    usual = [name for name, each in VARIANTS.items() if cuda or each.precision == "fp32"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", default="demo,tiny", help="demo, and shapes of training/models.py")
    parser.add_argument("--variants", default=";".join(usual), help="with semicolons between")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, help="file to append the tables to")
    options = parser.parse_args()
    chosen = [REFERENCE, *(name for name in options.variants.split(";") if name != REFERENCE)]
    if unknown := [name for name in chosen if name not in VARIANTS]:
        parser.error(f"unknown: {'; '.join(unknown)}; known are {'; '.join(VARIANTS)}")
    place = torch.cuda.get_device_name() if cuda else "CPU"
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    parts = [f"# Loss curves, {place}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}\n\n{packages}.\n"]
    for model in options.models.split(","):
        curves = curves_of(model, chosen, options.steps)
        rows = f"{options.steps} steps of {BATCH}×{ACCUMULATION} conversations"
        parts.append(f"## {model}: {rows}, relative to {REFERENCE}\n\n{table(curves)}\n")
    text = "\n".join(parts)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    return int("not met" in text)


def curves_of(model: str, chosen: list[str], steps: int) -> dict[str, list[float]]:
    """The losses of every variant on one model."""
    folder = MODEL_DIR if model == "demo" else Path(tempfile.gettempdir()) / "whet-benchmark-models" / model
    if model != "demo":
        make(model, folder)
    rows = chat_rows(folder, steps * BATCH * ACCUMULATION)
    start: dict[str, torch.Tensor] = {}
    curves: dict[str, list[float]] = {}
    for name in chosen:
        curves[name] = losses_of(VARIANTS[name], folder, rows, steps, start)
        print(
            f"{model}, {name}: {curves[name][0]:.6f} to {curves[name][-1]:.6f}", file=sys.stderr, flush=True
        )
    return curves


if __name__ == "__main__":
    sys.exit(main())
