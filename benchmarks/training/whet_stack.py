"""whet as a user meets it: its Python API, or the trainer of `whet train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rows import ALPHA, GIB, RANK, SEED, TARGETS, Job, MissingError, Prepared, Result


def load(job: Job) -> Prepared:
    """Model with its adapter on the fast path, and tokenizer."""
    import torch

    from whet.engine import FastLanguageModel
    from whet.engine.models.fast_path import apply_fast_path, program_of

    if job.quantised_head:
        raise MissingError("whet does not load the output head in reduced memory yet")
    if job.precision == "fp8":
        adapted, tokenizer = _load_fp8(job)
    else:
        model, tokenizer = FastLanguageModel.from_pretrained(
            job.folder, max_seq_length=job.length, load_in_4bit=job.precision == "nf4"
        )
        adapted = FastLanguageModel.get_peft_model(
            model,
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=0,
            target_modules=TARGETS,
            use_gradient_checkpointing=False,  # the planner decides, see `plan`
            random_state=SEED,
        )
    if program_of(adapted) is None:
        apply_fast_path(adapted, torch.float32 if job.precision == "fp32" else torch.bfloat16)
    return adapted, tokenizer


def _load_fp8(job: Job) -> Prepared:
    """The engine's own loading: the Python API has no switch for FP8."""
    from whet.engine.models.adapters import add_adapter
    from whet.engine.models.loading import Precision, load_model

    handle = load_model(Path(job.folder), Precision(job.device, "bf16", "fp8"))
    return add_adapter(handle.model, _section(), SEED, name=job.folder), handle.tokenizer


def _section() -> Any:
    from whet.engine.recipe import AdapterSection

    return AdapterSection(rank=RANK, alpha=ALPHA, target_modules=TARGETS)


def trainer(job: Job, model: Any, settings: dict[str, Any], given: dict[str, Any]) -> Any:
    """The Python API's trainer, or the one that `whet train` runs."""
    if job.trainer == "sft":
        from whet.engine import SFTConfig, SFTTrainer

        return SFTTrainer(model=model, args=SFTConfig(**settings), **given)
    from trl import SFTConfig

    from whet.engine.methods.sft.packed_steps import PaddingFreeCollator
    from whet.engine.methods.sft.run_trainer import RunTrainer

    given["train_dataset"] = given["train_dataset"].with_format("numpy")
    return RunTrainer(
        model,
        SFTConfig(**settings, remove_unused_columns=False),
        emit=lambda _: None,
        keep=1,
        data_collator=PaddingFreeCollator(),
        **given,
    )


def plan(trainer: Any, job: Job, result: Result) -> None:
    """Put the planner's schedule for this device, or for the job's cap, in force; note how steps will run."""
    from whet.engine.calibration import ceilings_of
    from whet.engine.hardware import inspect_machine
    from whet.engine.methods.sft.scheduled import follow
    from whet.engine.models.facts import read_model_facts
    from whet.engine.models.families import Unsupported
    from whet.engine.models.fast_path import program_of
    from whet.engine.models.fast_shape import Held, fast_shape
    from whet.engine.models.fast_time import Rows
    from whet.engine.scheduler import Room, choose_schedule

    program = program_of(trainer.model)
    if trainer.fast is None or program is None:
        result.note = f"plain path: {trainer.plain_reason or 'the model is of no known family'}"
        return
    compute = "fp32" if job.precision == "fp32" else "bf16"
    optimizer = "adamw_8bit" if job.device == "cuda" else "adamw"
    shape = fast_shape(
        read_model_facts(Path(job.folder)), _section(), Held(compute, job.precision, optimizer, job.device)
    )
    if isinstance(shape, Unsupported):
        result.note = f"no schedule: {shape.reason}"
        return
    lengths = [len(row) for row in trainer.train_dataset["input_ids"]]
    machine = inspect_machine()
    schedule = choose_schedule(
        shape,
        Rows.of_lengths(lengths, job.batch * job.accumulation),
        Room(_room(job, machine)),
        ceilings_of(machine),
    )
    follow(trainer.fast, schedule)
    result.predicted_peak = schedule.peak_bytes / GIB
    result.predicted_step = schedule.step_seconds
    result.note = f"{program.report}; {schedule.budget:,} tokens at once; {schedule.summary()}"


def _room(job: Job, machine: Any) -> int:
    """Bytes the planner may count on: the device's free ones, or what leaves the allocator the job's cap."""
    import torch

    from whet.engine.models.memory import CUDA_CONTEXT, FRAGMENTATION, PROCESS

    if job.cap is not None:
        runtime = CUDA_CONTEXT if job.device == "cuda" else PROCESS
        return int((job.cap * GIB + runtime) * (1 + FRAGMENTATION))
    if job.device == "cpu":
        return int(machine.ram_total)
    return int(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() + CUDA_CONTEXT)
