"""The plain library's side of what hears, sees and speaks."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import ALPHA, LANGUAGE, MARKS, RANK, Job
from datasets import Dataset
from peft import LoraConfig, get_peft_model

IGNORED = -100


def speech(job: Job, rows: list[dict[str, Any]], settings: dict[str, Any]) -> Any:
    """transformers', with features made beforehand, as its examples have it; whet makes them in the step."""
    from transformers import (
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    processor: Any = WhisperProcessor.from_pretrained(job.folder)
    tokenizer = processor.tokenizer
    marks = (f"<|{LANGUAGE}|>", "<|transcribe|>", "<|notimestamps|>")
    before = [tokenizer.convert_tokens_to_ids(mark) for mark in marks]
    table = []
    for row in rows:
        with wave.open(str(Path(job.rows).parent / row["audio"])) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
            found = processor.feature_extractor(samples, sampling_rate=file.getframerate())
        text = tokenizer(row["text"], add_special_tokens=False).input_ids
        labels = [*before, *text, tokenizer.eos_token_id]
        table.append({"input_features": found.input_features[0], "labels": labels})

    def collate(some: list[dict[str, Any]]) -> dict[str, Any]:
        labels = [torch.tensor(row["labels"]) for row in some]
        return {
            "input_features": torch.stack([torch.as_tensor(row["input_features"]) for row in some]),
            "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }

    dtype = torch.bfloat16 if job.device == "cuda" else torch.float32
    model = WhisperForConditionalGeneration.from_pretrained(job.folder, dtype=dtype).to(job.device)
    adapter = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=job.targets)
    return Seq2SeqTrainer(
        get_peft_model(model, adapter),
        Seq2SeqTrainingArguments(**settings, remove_unused_columns=False, label_names=["labels"]),
        train_dataset=table,
        data_collator=collate,
    )


def vision(job: Job, rows: list[dict[str, Any]], settings: dict[str, Any]) -> Any:
    """TRL's, with transformers' processor, on answers alone."""
    from seeing import trl_trainer
    from transformers import AutoModelForImageTextToText

    dtype = torch.bfloat16 if job.device == "cuda" else torch.float32
    model = AutoModelForImageTextToText.from_pretrained(job.folder, dtype=dtype).to(job.device)
    return trl_trainer(model, Path(job.folder), Path(job.rows).parent, rows, settings)


def tts(job: Job, rows: list[dict[str, Any]], settings: dict[str, Any]) -> Any:
    """TRL's on rows that are tokens already, in Orpheus' order, with labels on what is spoken."""
    from plain_side import causal
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    table = []
    for row in rows:
        text = tokenizer(row["text"]).input_ids
        before = [MARKS["human_start"], *text, MARKS["text_end"], MARKS["human_end"]]
        before += [MARKS["ai_start"], MARKS["speech_start"]]
        codes = [MARKS["codes_start"] + code for code in row["codes"]]
        speech = [*codes, MARKS["speech_end"], MARKS["ai_end"]]
        table.append({"input_ids": [*before, *speech], "labels": [*[IGNORED] * len(before), *speech]})
    return SFTTrainer(
        causal(job),
        SFTConfig(**settings, max_length=job.length),
        train_dataset=Dataset.from_list(table),
        processing_class=tokenizer,
    )
