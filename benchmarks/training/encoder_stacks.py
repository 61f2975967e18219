"""One stack's training of an embedding model: pairs of texts, in-batch negatives, a LoRA on the encoder."""

from __future__ import annotations

import importlib.util
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from measuring import after_loading, after_training, clock
from models import text_pairs
from rows import SEED, Job, MissingError, Prepared, Result

RANK, ALPHA = 32, 64
TARGETS = ["key", "query", "value", "dense"]
LENGTH = 512
PROFILE = "WHET_BENCHMARK_PROFILE"
"""Environment: a folder that whet's profile goes to; it is of steps after the timed ones."""
PROFILED = 5
"""Steps of the profile."""


def load_st(job: Job) -> Prepared:
    """sentence-transformers and PEFT, as their own guides put them together."""
    import torch
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer

    dtype = torch.float32 if job.precision == "fp32" else torch.bfloat16
    model = SentenceTransformer(
        job.folder, model_kwargs={"dtype": dtype, "attn_implementation": "sdpa"}, device=job.device
    )
    torch.manual_seed(SEED)
    model.add_adapter(
        LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=0,
            bias="none",
            target_modules=TARGETS,
            task_type="FEATURE_EXTRACTION",
        )
    )
    return model, None


def load_unsloth(job: Job) -> Prepared:
    """As its notebooks do."""
    if importlib.util.find_spec("unsloth") is None:
        raise MissingError("unsloth is not installed")
    import unsloth  # first, before transformers is loaded

    return _load_fast(unsloth.FastSentenceTransformer, job)


def load_whet(job: Job) -> Prepared:
    """whet's Python API."""
    from whet.engine import FastSentenceTransformer

    return _load_fast(FastSentenceTransformer, job)


def _load_fast(loader: Any, job: Job) -> Prepared:
    model = loader.from_pretrained(job.folder, max_seq_length=LENGTH, full_finetuning=False)
    adapted = loader.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing=False,
        task_type="FEATURE_EXTRACTION",
        random_state=SEED,
    )
    return adapted, None


LOADERS = {"whet": load_whet, "st": load_st, "unsloth": load_unsloth}


def make_trainer(job: Job, model: Any, callbacks: list[Any], output: str) -> Any:
    """The stack's trainer over the job's pairs."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    trainer: Any = SentenceTransformerTrainer
    if job.stack == "whet":
        import whet.engine

        trainer = whet.engine.SentenceTransformerTrainer
    arguments = SentenceTransformerTrainingArguments(
        output_dir=output,
        max_steps=job.steps,
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=job.accumulation,
        learning_rate=3e-5,
        warmup_steps=2,
        bf16=job.device == "cuda" and job.precision != "fp32",
        use_cpu=job.device == "cpu",
        logging_steps=10 if job.steps > 10 else 1,
        report_to="none",
        save_strategy="no",
        seed=SEED,
        disable_tqdm=True,
    )
    rows = Dataset.from_dict(text_pairs(job.batch * job.accumulation * (job.steps + PROFILED + 1)))
    return trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        loss=MultipleNegativesRankingLoss(model),
        callbacks=callbacks,
    )


def run(job: Job, started: float) -> Result:
    """Load, train, measure.

    Args:
        started: when the process was started, as :func:`time.time` says it.
    """
    model, _ = LOADERS[job.stack](job)
    result = after_loading(job, started)
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as output:
        began = time.time()
        trainer = make_trainer(job, model, [clock(marks)], output)
        result.note = f"trainer made in {time.time() - began:.1f} s"
        if job.stack == "whet":
            result.note += f"; {trainer.plain_reason or 'batches on the fast path'}"
        if job.stack == "whet" and PROFILE in os.environ:
            trainer.args.max_steps += PROFILED + 1
            trainer.add_callback(profiler(Path(os.environ[PROFILE]) / f"{job.model}.txt", job))
        trainer.train()
        marks = marks[: job.steps]
    after_training(job, result, trainer, marks, started)
    seconds = [after - before for before, after in pairwise(marks[job.warm - 1 :])]
    pairs = job.batch * job.accumulation
    result.step = statistics.median(seconds)
    result.rate, result.mean_rate = pairs / result.step, pairs * len(seconds) / sum(seconds)
    return result


def profiler(path: Path, job: Job) -> Any:
    """A callback that writes what the steps behind the job's launch and how long each kernel takes."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    class Profiler(TrainerCallback):
        def __init__(self) -> None:
            self.profile: Any = None
            self.began = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == job.steps:
                torch.cuda.synchronize()
                self.profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
                self.profile.__enter__()
                self.began = time.perf_counter()
            elif state.global_step == job.steps + PROFILED:
                torch.cuda.synchronize()
                wall = time.perf_counter() - self.began
                self.profile.__exit__(None, None, None)
                path.write_text(_summary(self.profile, wall, PROFILED), encoding="utf-8")

    return Profiler()


def _summary(profile: Any, wall: float, steps: int) -> str:
    from torch.autograd import DeviceType

    events = [event for event in profile.events() if event.device_type == DeviceType.CUDA]
    busy = sum(event.device_time for event in events) / steps / 1e3
    host = [event for event in profile.events() if event.name in ("cudaLaunchKernel", "cuLaunchKernelEx")]
    lines = [
        f"wall {wall / steps * 1e3:.2f} ms a step, GPU busy {busy:.2f} ms, "
        f"{len(events) / steps:.0f} kernels, {len(host) / steps:.0f} launches from the host",
    ]
    lines.append(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=40,
                                              max_name_column_width=70))  # fmt: skip
    lines.append(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25,
                                              max_name_column_width=60))  # fmt: skip
    return "\n".join(lines)
