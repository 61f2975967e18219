"""whet as a user meets it: its Python API, or the trainer of `whet train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rows import ALPHA, GIB, RANK, SEED, TARGETS, Job, Prepared, Result

MIB = 2**20


def load(job: Job) -> Prepared:
    """Model with its adapter on the fast path, and tokenizer."""
    from whet.engine import FastLanguageModel

    if job.precision == "fp8" or job.products == "fp8" or job.ends != "16bit":
        return _load_by_engine(job)
    model, tokenizer = FastLanguageModel.from_pretrained(
        job.folder, max_seq_length=job.length, load_in_4bit=job.precision == "nf4"
    )
    adapted = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0,
        target_modules=TARGETS,
        use_gradient_checkpointing="unsloth",  # may recompute: the planner decides
        random_state=SEED,
    )
    return adapted, tokenizer


def _load_by_engine(job: Job) -> Prepared:
    """What the Python API has no switch for, but a recipe has."""
    from whet.engine.models.adapters import add_adapter
    from whet.engine.models.fast_path import apply_fast_path
    from whet.engine.models.fast_path.projections import fp8_classes
    from whet.engine.models.loading import Precision, load_model

    held = Precision(device=job.device, compute_dtype="bf16", base_precision=job.precision, **_ends(job))
    handle = load_model(Path(job.folder), held)
    adapted = add_adapter(handle.model, _section(), SEED, name=job.folder)
    apply_fast_path(adapted, handle.dtype, fp8=fp8_classes(handle.device, four_bits=job.products == "fp8"))
    return adapted, handle.tokenizer


def _ends(job: Job) -> dict[str, Any]:
    return {} if job.ends == "16bit" else {"embedding_precision": job.ends, "head_precision": job.ends}


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
    from whet.engine.scheduler import choose_schedule

    program = program_of(trainer.model)
    if trainer.fast is None or program is None:
        result.note = f"plain path: {trainer.plain_reason or 'the model is of no known family'}"
        return
    held = Held(
        compute_dtype="fp32" if job.precision == "fp32" else "bf16",
        base_precision=job.precision,
        products=job.products,
        optimizer="adamw_8bit" if job.device == "cuda" else "adamw",
        device=job.device,
        **_ends(job),
    )
    shape = fast_shape(read_model_facts(Path(job.folder)), _section(), held)
    if isinstance(shape, Unsupported):
        result.note = f"no schedule: {shape.reason}"
        return
    lengths = [len(row) for row in trainer.train_dataset["input_ids"]]
    machine = inspect_machine()
    rows, ceilings = Rows.of_lengths(lengths, job.batch * job.accumulation), ceilings_of(machine)
    schedule = choose_schedule(shape, rows, _room(job, machine), ceilings)
    if job.cap is not None and job.device == "cuda":
        _withhold(max(schedule.peak_bytes, int(job.cap * GIB)))
    follow(trainer.fast, schedule)
    result.predicted_peak = schedule.peak_bytes / GIB
    result.predicted_step = schedule.step_seconds
    result.note = f"{program.report}; {schedule.budget:,} tokens at once; {schedule.summary()}"


def _withhold(peak: int) -> None:
    """Leave the allocator what a peak of so many bytes needs: the Python API's trainer plans by it, and more
    is not to be had."""
    import torch

    from whet.engine.models.memory import CUDA_CONTEXT, FRAGMENTATION

    leaves = (peak + CUDA_CONTEXT) * (1 + FRAGMENTATION) - CUDA_CONTEXT + MIB
    torch.cuda.set_per_process_memory_fraction(leaves / torch.cuda.mem_get_info()[1])


def _room(job: Job, machine: Any) -> Any:
    """What the planner may count on: the free memory, or on the device what leaves the allocator the cap."""
    import torch

    from whet.engine.models.memory import CUDA_CONTEXT, FRAGMENTATION, PROCESS
    from whet.engine.scheduler import Room

    cuda = job.device == "cuda"
    if job.cap is not None:
        device = (job.cap * GIB + (CUDA_CONTEXT if cuda else PROCESS)) * (1 + FRAGMENTATION)
    elif cuda:
        device = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() + CUDA_CONTEXT
    else:
        device = machine.ram_total
    return Room(int(device), machine.ram_available if cuda else 0)
