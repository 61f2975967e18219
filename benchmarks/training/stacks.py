"""One stack's run in this process: `python -P benchmarks/training/stacks.py JOB.json RESULT.json`.

Every stack gets the same checkpoint, the same rows in the same order, rank, learning rate and optimizer, and
starts from the same adapter where it draws it by PEFT's own code. What recomputes, regroups or compiles is
its own affair.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from measuring import after_loading, after_training, clock
from models import token_rows
from rows import ALPHA, RANK, SEED, TARGETS, Job, MissingError, Prepared, Result

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # for all; one of them sets it by itself
    "UNSLOTH_DISABLE_STATISTICS": "1",
}

# --- loading


def load_hf(job: Job) -> Prepared:
    """transformers and PEFT, as their own guides put them together."""
    from transformers import AutoModelForCausalLM

    return _load_peft(job, AutoModelForCausalLM)


def load_liger(job: Job) -> Prepared:
    """The same with Liger's kernels put into the model's classes."""
    if importlib.util.find_spec("liger_kernel") is None:
        raise MissingError("liger_kernel is not installed")
    from liger_kernel.transformers import AutoLigerKernelForCausalLM

    return _load_peft(job, AutoLigerKernelForCausalLM)


def _load_peft(job: Job, auto: Any) -> Prepared:
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoTokenizer, BitsAndBytesConfig, set_seed

    if job.precision == "fp8":
        raise MissingError("no FP8 base for adapters")
    dtype = torch.float32 if job.precision == "fp32" else torch.bfloat16
    placed: dict[str, Any] = {"device_map": {"": 0}} if job.device == "cuda" else {}
    if job.precision == "nf4":
        placed["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = auto.from_pretrained(job.folder, dtype=dtype, attn_implementation="sdpa", **placed)
    if job.precision == "nf4":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    set_seed(SEED)
    adapter = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0, bias="none", target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, adapter), AutoTokenizer.from_pretrained(job.folder)


def load_unsloth(job: Job) -> Prepared:
    """As its notebooks do."""
    if importlib.util.find_spec("unsloth") is None:
        raise MissingError("unsloth is not installed")
    import unsloth  # first, before transformers and TRL are loaded

    if job.precision == "fp8":
        raise MissingError("compared in bf16")
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        job.folder, max_seq_length=job.length, dtype=None, load_in_4bit=job.precision == "nf4"
    )
    adapted = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing="unsloth" if job.checkpointing else False,
        random_state=SEED,
    )
    return adapted, tokenizer


def load_whet(job: Job) -> Prepared:
    """whet's Python API; see :mod:`whet_stack`."""
    from whet_stack import load

    return load(job)


LOADERS: dict[str, Callable[[Job], Prepared]] = {
    "whet": load_whet,
    "hf": load_hf,
    "liger": load_liger,
    "unsloth": load_unsloth,
}


# --- training


def make_trainer(job: Job, model: Any, tokenizer: Any, callbacks: list[Any], output: str) -> Any:
    """The stack's SFTTrainer over the job's rows."""
    from datasets import Dataset

    ids = token_rows(job.model, job.steps * job.batch * job.accumulation, job.length, job.lengths)
    mask = [[1] * len(row) for row in ids]
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids, "attention_mask": mask})
    given = {"train_dataset": rows, "processing_class": tokenizer, "callbacks": callbacks}
    if job.stack == "whet":
        from whet_stack import trainer

        return trainer(job, model, settings(job, output), given)
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(model=model, args=SFTConfig(**settings(job, output)), **given)


def settings(job: Job, output: str) -> dict[str, Any]:
    """The fields of SFTConfig that all stacks share."""
    from trl import SFTConfig

    names = [field.name for field in fields(SFTConfig)]
    # One setting by two names; the newest that this version knows.
    recompute = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in names)
    own = job.stack == "unsloth"  # its models recompute by themselves
    given: dict[str, Any] = {
        "output_dir": output,
        "per_device_train_batch_size": job.batch,
        "gradient_accumulation_steps": job.accumulation,
        "max_steps": job.steps,
        "learning_rate": 2e-4,
        "warmup_steps": 2,
        "lr_scheduler_type": "linear",
        "optim": "adamw_8bit" if job.device == "cuda" else "adamw_torch",
        "weight_decay": 0.001,
        "seed": SEED,
        "bf16": job.device == "cuda" and job.precision != "fp32",
        "max_length": job.length,
        "train_sampling_strategy": "sequential",
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if job.stack == "whet":
        return given
    given[recompute] = job.checkpointing and not own
    if not own:
        given[f"{recompute}_kwargs"] = {"use_reentrant": False}
    if job.stack == "liger":
        given["use_liger_kernel"] = True
    return given


def run(job: Job, started: float) -> Result:
    """Load, train, measure.

    Args:
        started: when the process was started, as :func:`time.time` says it.
    """
    model, tokenizer = LOADERS[job.stack](job)
    result = after_loading(job, started)
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as output:
        trainer = make_trainer(job, model, tokenizer, [clock(marks)], output)
        if job.stack == "whet":
            from whet_stack import plan

            plan(trainer, job, result)
        trainer.train()
    after_training(job, result, trainer, marks, started)
    _rates(job, marks, result)
    return result


def _rates(job: Job, marks: list[float], result: Result) -> None:
    per_step = job.batch * job.accumulation
    rows = token_rows(job.model, job.steps * per_step, job.length, job.lengths)
    tokens = [
        sum(len(row) for row in rows[step * per_step : (step + 1) * per_step])
        for step in range(job.warm, len(marks))
    ]
    seconds = [after - before for before, after in pairwise(marks[job.warm - 1 :])]
    result.step = statistics.median(seconds)
    result.rate = statistics.median(count / each for count, each in zip(tokens, seconds, strict=True))
    result.mean_rate = sum(tokens) / sum(seconds)


def main() -> int:
    """Run the job of a file and write what it measured to another."""
    given, into = map(Path, sys.argv[1:3])
    words = json.loads(given.read_text(encoding="utf-8"))
    started = float(words.pop("started"))
    os.environ.update(ENVIRONMENT)
    job = Job(**words)
    try:
        if job.task == "embedding":
            import encoder_stacks

            result = encoder_stacks.run(job, started)
        else:
            result = run(job, started)
    except MissingError as error:
        result = Result(error=str(error), missing=True)
    into.write_text(json.dumps(asdict(result)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
