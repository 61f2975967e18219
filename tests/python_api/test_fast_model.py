"""`FastModel` as older scripts use it: a classifier, Whisper, a token language model; what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from support.coded_models import build_coded_model
from support.tiny_csm import RATE as CSM_RATE
from support.tiny_csm import build_tiny_csm
from support.tiny_embedders import save_transformer
from support.tiny_models import build_tiny_model
from support.tiny_vision import build_seeing
from support.tiny_whisper import PITCHES, RATE, build_tiny_whisper, tone
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CsmForConditionalGeneration,
    DataCollatorWithPadding,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    pipeline,
)

from whet.engine import FastModel, FastVisionModel, SFTConfig, SFTTrainer
from whet.engine.errors import WhetError
from whet.engine.models.fast_path import program_of
from whet.engine.models.fast_path.encoders import encoder_program_of

TEXTS = {"animal": ["dog", "cat", "horse", "bird"], "place": ["paris", "rome", "oslo", "vienna"]}
LABELS = {0: "animal", 1: "place"}

pytestmark = pytest.mark.filterwarnings("ignore:All weights are frozen")


def arguments(out: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "max_steps": 30,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": 3407,
    } | more


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_modernbert_classifier_trains_with_transformers_trainer_and_leaves_whole(tmp_path: Path) -> None:
    model, tokenizer = FastModel.from_pretrained(
        model_name=str(save_transformer(tmp_path / "base", "modernbert")),
        auto_model=AutoModelForSequenceClassification,
        max_seq_length=64,
        load_in_4bit=False,
        num_labels=2,
        id2label=LABELS,
        label2id={name: number for number, name in LABELS.items()},
    )
    model = FastModel.get_peft_model(
        model, r=16, lora_alpha=32, task_type="SEQ_CLS", use_gradient_checkpointing="unsloth"
    )
    assert encoder_program_of(model) is not None
    rows = [
        {"text": f"{one} {other}", "labels": number}
        for number, name in LABELS.items()
        for one in TEXTS[name]
        for other in TEXTS[name]
    ]
    data = Dataset.from_list(rows).map(
        lambda batch: tokenizer(batch["text"]), batched=True, remove_columns="text"
    )
    trainer = Trainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
        args=TrainingArguments(**arguments(tmp_path / "out")),
    )
    trainer.train()
    assert np.mean(losses(trainer)[-5:]) < 0.5 * losses(trainer)[0]
    FastModel.for_inference(model)
    inputs = tokenizer(["dog bird", "oslo rome"], padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = model(**inputs).logits
    assert wanted.argmax(-1).tolist() == [0, 1]
    folder = model.save_pretrained_merged(tmp_path / "adapter", tokenizer, save_method="lora")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    with torch.no_grad():
        again = PeftModel.from_pretrained(plain, str(folder)).eval()(**inputs).logits
    torch.testing.assert_close(again, wanted, atol=1e-4, rtol=1e-4)
    merged = model.save_pretrained_merged(tmp_path / "merged", tokenizer)
    answer: Any = pipeline("text-classification", model=str(merged), device="cpu")
    assert [one["label"] for one in answer(["dog bird", "oslo rome"])] == ["animal", "place"]
    back, _ = FastModel.from_pretrained(str(folder), auto_model=AutoModelForSequenceClassification)
    with torch.no_grad():
        torch.testing.assert_close(back.eval()(**inputs).logits, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(WhetError, match="head of classes") as caught:
        model.save_pretrained_gguf(tmp_path / "gguf", tokenizer)
    assert caught.value.code == "gguf.unsupported"


def test_whisper_trains_with_seq2seq_trainer_and_leaves_for_transformers(tmp_path: Path) -> None:
    base = build_tiny_whisper(tmp_path / "base")
    model, processor = FastModel.from_pretrained(
        str(base),
        dtype=None,
        load_in_4bit=False,
        auto_model=WhisperForConditionalGeneration,
        whisper_language="English",
        whisper_task="transcribe",
    )
    model = FastModel.get_peft_model(
        model, r=16, target_modules=["q_proj", "v_proj", "fc1"], lora_alpha=32, bias="none",
        use_gradient_checkpointing="unsloth", random_state=3407, use_rslora=False, loftq_config=None,
        task_type=None,
    )  # fmt: skip
    features = processor.feature_extractor([tone(pitch) for pitch in PITCHES], sampling_rate=RATE)
    rows = [
        {"input_features": features.input_features[number], "labels": processor.tokenizer(word).input_ids}
        for number, word in enumerate(("a", "b"))
    ]
    assert rows[0]["labels"][:4] == processor.tokenizer.convert_tokens_to_ids(
        ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    )

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "input_features": torch.tensor(np.stack([row["input_features"] for row in batch])),
            "labels": torch.tensor([row["labels"][1:] for row in batch]),
        }

    trainer = Seq2SeqTrainer(
        model=model,
        train_dataset=rows,
        data_collator=collate,
        processing_class=processor.feature_extractor,
        args=Seq2SeqTrainingArguments(
            **arguments(tmp_path / "out", max_steps=15, remove_unused_columns=False, label_names=["labels"])
        ),
    )
    trainer.train()
    assert losses(trainer)[-1] < 0.5 * losses(trainer)[0]
    FastModel.for_inference(model)
    batch = collate(rows)
    ids = model.generate(input_features=batch["input_features"], max_new_tokens=4)
    assert ids.shape[0] == 2
    with torch.no_grad():
        wanted = model(**batch).logits
    folder = model.save_pretrained_merged(tmp_path / "adapter", processor, save_method="lora")
    plain = PeftModel.from_pretrained(WhisperForConditionalGeneration.from_pretrained(base), str(folder))
    merged: Any = WhisperForConditionalGeneration.from_pretrained(
        model.save_pretrained_merged(tmp_path / "merged", processor), dtype=torch.float32
    )
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(**batch).logits, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(merged.eval()(**batch).logits, wanted, atol=0.1, rtol=0.05)
    assert merged.generation_config.language == "en"
    WhisperProcessor.from_pretrained(tmp_path / "merged")
    with pytest.raises(WhetError, match=r"whisper\.cpp reads another format"):
        model.save_pretrained_gguf(tmp_path / "gguf")


def test_a_speaking_language_model_takes_the_fast_path_and_learns_token_rows(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base", "llama")
    model, tokenizer = FastModel.from_pretrained(str(base), max_seq_length=64, load_in_4bit=False)
    model = FastModel.get_peft_model(model, r=8, lora_alpha=16, use_gradient_checkpointing="unsloth")
    assert program_of(model) is not None
    sounds = {"hello": [300, 310, 320, 330, 340, 350, 360], "bye": [305, 315, 325, 335, 345, 355, 365]}
    rows = []
    for text, codes in sounds.items():
        ids = [*tokenizer.encode(text), *codes, tokenizer.eos_token_id]
        rows.append({"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)})
    trainer = SFTTrainer(
        model=model,
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(**arguments(tmp_path / "out", per_device_train_batch_size=2, learning_rate=1e-2)),
    )
    trainer.train()
    assert losses(trainer)[-1] < 0.3 * losses(trainer)[0]
    FastModel.for_inference(model)
    start = torch.tensor([tokenizer.encode("bye")])
    out = model.generate(input_ids=start, max_new_tokens=7, do_sample=False)
    assert out[0, start.shape[1] :].tolist() == sounds["bye"]


def test_csm_trains_with_transformers_trainer_on_sound(tmp_path: Path) -> None:
    base = build_tiny_csm(tmp_path / "base")
    model, tokenizer = FastModel.from_pretrained(
        str(base), auto_model=CsmForConditionalGeneration, load_in_4bit=False
    )
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastModel.get_peft_model(model, r=16, lora_alpha=32, target_modules=names)
    assert not any("codec" in name for name, weight in model.named_parameters() if weight.requires_grad)
    config = model.config
    rows = []
    for word, pitch in (("yes", 100.0), ("no", 400.0)):
        sound = tone(pitch, 0.1, CSM_RATE)
        text, frames = tokenizer.encode(word)[:1], math.ceil(len(sound) / 100)
        ids = [*text, *[config.audio_token_id] * frames, config.audio_eos_token_id]
        rows.append({"input_ids": ids, "labels": [-100, *ids[1:]], "input_values": sound[None]})

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ends = torch.tensor([[row["input_values"].shape[-1]] for row in batch])
        found = {name: torch.tensor(np.stack([row[name] for row in batch])) for name in batch[0]}
        return found | {"input_values_cutoffs": ends}

    trainer = Trainer(
        model=model,
        train_dataset=rows,
        data_collator=collate,
        args=TrainingArguments(**arguments(tmp_path / "out", max_steps=12, remove_unused_columns=False)),
    )
    trainer.train()
    assert losses(trainer)[-1] < 0.5 * losses(trainer)[0]
    merged = model.save_pretrained_merged(tmp_path / "merged", tokenizer)
    again: Any = CsmForConditionalGeneration.from_pretrained(merged, dtype=torch.float32)
    with torch.no_grad():
        wanted = FastModel.for_inference(model)(**collate(rows)).loss
        torch.testing.assert_close(again.eval()(**collate(rows)).loss, wanted, atol=0.1, rtol=0.05)


def test_a_model_that_sees_takes_its_own_way(tmp_path: Path) -> None:
    base = build_seeing(tmp_path / "base", "llava")
    model, processor = FastModel.from_pretrained(str(base), load_in_4bit=False)
    own, own_processor = FastVisionModel.from_pretrained(str(base), load_in_4bit=False)
    assert type(model) is type(own) and type(processor) is type(own_processor)
    adapted = FastModel.get_peft_model(model, r=4, finetune_vision_layers=False)
    assert not any("vision" in name for name, weight in adapted.named_parameters() if weight.requires_grad)
    assert FastModel.for_training(FastModel.for_inference(adapted)).training
    with pytest.raises(WhetError, match="for causal language models"):
        FastModel.from_pretrained(str(base), load_in_fp8=True)


def test_whole_models_of_other_kinds_are_saved_in_16_bits(tmp_path: Path) -> None:
    base = build_tiny_whisper(tmp_path / "base")
    model, processor = FastModel.from_pretrained(str(base), full_finetuning=True, load_in_4bit=False)
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    FastModel.for_training(FastModel.for_inference(model))
    assert model.training
    folder = model.save_pretrained_merged(tmp_path / "whole", processor)
    again: Any = WhisperForConditionalGeneration.from_pretrained(folder)
    assert again.dtype == torch.bfloat16
    tied = again.proj_out.weight.data_ptr() == again.model.decoder.embed_tokens.weight.data_ptr()
    assert tied and isinstance(AutoTokenizer.from_pretrained(folder).eos_token, str)


def test_what_it_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    llama, whisper = build_tiny_model(tmp_path / "llama"), build_tiny_whisper(tmp_path / "whisper")
    english = build_tiny_whisper(tmp_path / "english", english_only=True)
    refused: list[tuple[str, dict[str, Any]]] = [
        ("python_api.whisper", {"model_name": str(whisper), "whisper_language": "Klingon"}),
        ("python_api.whisper", {"model_name": str(english), "whisper_language": "German"}),
        ("python_api.whisper", {"model_name": str(english), "whisper_task": "translate"}),
        ("python_api.auto_model", {"model_name": str(llama), "whisper_language": "English"}),
        ("python_api.labels", {"model_name": str(llama), "num_labels": 3, "id2label": {0: "a", 1: "b"}}),
        ("python_api.labels", {"model_name": str(llama), "id2label": {0: "a"}, "label2id": {"b": 0}}),
        ("python_api.auto_model", {"model_name": str(llama), "num_labels": 3}),
        ("python_api.auto_model", {"model_name": str(llama), "auto_model": "AutoModel"}),
        ("model.load", {"model_name": str(llama), "auto_model": AutoModelForSeq2SeqLM}),
        ("python_api.precision", {"model_name": str(whisper), "load_in_fp8": True}),
        ("python_api.unknown_argument", {"model_name": str(llama), "whisper_lang": "en"}),
        ("python_api.token", {"model_name": str(llama), "token": "hf_abc"}),
    ]
    for code, given in refused:
        with pytest.raises(WhetError) as caught:
            FastModel.from_pretrained(**given)
        assert caught.value.code == code, given
    hearing, processor = FastModel.from_pretrained(
        str(english), whisper_language="English", whisper_task="transcribe"
    )
    features = processor.feature_extractor(
        [tone(300)], sampling_rate=RATE, return_tensors="pt"
    ).input_features
    assert (
        hearing.generate(features, max_new_tokens=2).shape[0] == 1
    )  # English-only models take no such words
    model, _ = FastModel.from_pretrained(
        str(llama), auto_model=AutoModelForSequenceClassification, num_labels=2
    )
    with pytest.raises(WhetError, match="is not what this model does"):
        FastModel.get_peft_model(model, task_type="TOKEN_CLS")


def test_a_models_own_code_runs_by_the_callers_word_alone(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    base = build_coded_model(tmp_path / "base", mark)
    with pytest.raises(WhetError) as caught:
        FastModel.from_pretrained(str(base), load_in_4bit=False)
    assert caught.value.code == "model.remote_code" and not mark.exists()
    model, _ = FastModel.from_pretrained(str(base), load_in_4bit=False, trust_remote_code=True)
    assert mark.exists() and type(model).__name__ == "OwnForCausalLM"
