"""The plain library's side: TRL's, sentence-transformers' or transformers' trainer with PEFT."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import ALPHA, RANK, SEED, Job, Measured
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from plain_media import speech, tts, vision
from timing import Clock, measured
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

Rows = list[dict[str, Any]]


def run(job: Job) -> Measured:
    """Load, train, measure."""
    torch.set_num_threads(job.threads)
    clock = Clock()
    rows = [json.loads(line) for line in Path(job.rows).read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as output:
        trainer = TRAINERS[job.case](job, rows, arguments(job, output))
        trainer.add_callback(clock)
        trainer.train()
    losses, rewards = (
        [entry[name] for entry in trainer.state.log_history if name in entry] for name in ("loss", "reward")
    )
    return measured(job, clock, losses, rewards)


def arguments(job: Job, output: str) -> dict[str, Any]:
    """What whet's recipe of the case says, too."""
    cuda = job.device == "cuda"
    return {
        "output_dir": output,
        "max_steps": job.steps,
        "per_device_train_batch_size": job.batch,
        "learning_rate": 1e-4,
        "optim": "adamw_torch_fused" if cuda else "adamw_torch",
        "bf16": cuda,
        "use_cpu": not cuda,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "seed": SEED,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def lora(job: Job, task: TaskType | None = None, saved: list[str] | None = None) -> LoraConfig:
    """The adapter of both sides."""
    return LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=job.targets, task_type=task, modules_to_save=saved
    )


def load(job: Job, auto: Any, task: TaskType, saved: list[str] | None = None, **more: Any) -> Any:
    """A model with its adapter, on the device."""
    dtype = torch.bfloat16 if job.device == "cuda" else torch.float32
    model = auto.from_pretrained(job.folder, dtype=dtype, **more).to(job.device)
    return get_peft_model(model, lora(job, task, saved))


def causal(job: Job) -> Any:
    """A decoder."""
    return load(job, AutoModelForCausalLM, TaskType.CAUSAL_LM)


def sft(job: Job, rows: Rows, settings: dict[str, Any]) -> Any:
    """TRL's."""
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        causal(job),
        SFTConfig(**settings, max_length=job.length),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
    )


def preference(job: Job, rows: Rows, settings: dict[str, Any]) -> Any:
    """TRL's DPO; the reference is the model without its adapter."""
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        causal(job),
        args=DPOConfig(**settings, max_length=job.length),
        train_dataset=Dataset.from_list(turns(rows)),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
    )


def reward(job: Job, rows: Rows, settings: dict[str, Any]) -> Any:
    """TRL's."""
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    model = load(
        job,
        AutoModelForSequenceClassification,
        TaskType.SEQ_CLS,
        ["score"],
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    return RewardTrainer(
        model,
        args=RewardConfig(**settings, max_length=job.length),
        train_dataset=Dataset.from_list(turns(rows)),
        processing_class=tokenizer,
    )


def grpo(job: Job, rows: Rows, settings: dict[str, Any]) -> Any:
    """TRL's, answering by transformers' own generation."""
    from reward import even
    from trl import GRPOConfig, GRPOTrainer

    return GRPOTrainer(
        causal(job),
        even,
        args=GRPOConfig(
            **settings,
            num_generations=job.method["num_generations"],
            max_completion_length=job.method["max_completion_length"],
            steps_per_generation=1,
            loss_type="grpo",
            disable_dropout=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
    )


def turns(rows: Rows) -> Rows:
    """Texts as turns, which the chat template writes."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return [{name: [{"role": role, "content": row[name]}] for name, role in roles.items()} for row in rows]


def embedding(job: Job, rows: Rows, settings: dict[str, Any]) -> Any:
    """sentence-transformers' with in-batch negatives."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.training_args import BatchSamplers
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    dtype = torch.bfloat16 if job.device == "cuda" else torch.float32
    model = SentenceTransformer(job.folder, device=job.device, model_kwargs={"dtype": dtype})
    model.max_seq_length = job.length
    model.add_adapter(lora(job, TaskType.FEATURE_EXTRACTION))
    return SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(**settings, batch_sampler=BatchSamplers.NO_DUPLICATES),
        train_dataset=Dataset.from_list(rows),
        loss=MultipleNegativesRankingLoss(model),
    )


def reranker(job: Job, rows: Rows, settings: dict[str, Any]) -> Any:
    """sentence-transformers' with binary cross-entropy."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    from sentence_transformers.cross_encoder.trainer import CrossEncoderTrainer
    from sentence_transformers.cross_encoder.training_args import CrossEncoderTrainingArguments

    dtype = torch.bfloat16 if job.device == "cuda" else torch.float32
    model = CrossEncoder(job.folder, num_labels=1, device=job.device, model_kwargs={"dtype": dtype})
    model.max_seq_length = job.length
    part: Any = model[0]
    part.model = get_peft_model(part.model, lora(job, TaskType.SEQ_CLS, ["classifier"]))
    table = [{"query": row["query"], "document": row["document"], "label": row["score"]} for row in rows]
    return CrossEncoderTrainer(
        model,
        CrossEncoderTrainingArguments(**settings),
        train_dataset=Dataset.from_list(table),
        loss=BinaryCrossEntropyLoss(model),
    )


def classification(job: Job, rows: Rows, settings: dict[str, Any]) -> Any:
    """transformers'."""
    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    names = sorted({row["label"] for row in rows})
    table = Dataset.from_list(
        [
            {
                **tokenizer(row["text"], truncation=True, max_length=job.length),
                "labels": names.index(row["label"]),
            }
            for row in rows
        ]
    )
    return Trainer(
        load(
            job,
            AutoModelForSequenceClassification,
            TaskType.SEQ_CLS,
            ["classifier"],
            num_labels=len(names),
        ),
        TrainingArguments(**settings),
        train_dataset=table,
        data_collator=DataCollatorWithPadding(tokenizer),
    )


def token_classification(job: Job, rows: Rows, settings: dict[str, Any]) -> Any:
    """transformers'."""
    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    names = sorted({tag for row in rows for tag in row["tags"]})
    table = []
    for row in rows:
        coded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=job.length)
        words = coded.word_ids()
        labels = [
            -100 if word is None or word == before else names.index(row["tags"][word])
            for before, word in zip([None, *words], words, strict=False)
        ]
        table.append({**coded, "labels": labels})
    return Trainer(
        load(job, AutoModelForTokenClassification, TaskType.TOKEN_CLS, ["classifier"], num_labels=len(names)),
        TrainingArguments(**settings),
        train_dataset=Dataset.from_list(table),
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )


TRAINERS: dict[str, Callable[[Job, Rows, dict[str, Any]], Any]] = {
    "sft": sft,
    "preference": preference,
    "reward": reward,
    "embedding": embedding,
    "reranker": reranker,
    "classification": classification,
    "token_classification": token_classification,
    "grpo": grpo,
    "speech": speech,
    "tts": tts,
    "vision": vision,
}
