"""The embedding script of old runs with its import changed; what it saves needs no whet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sentence_transformer import losses
from support.tiny_embedders import build_embedder, save_transformer

from whet.engine import FastSentenceTransformer, is_bf16_supported
from whet.engine.errors import WhetError

TEXTS = ["Where is Oslo?", "In Norway.", "a b c d e f g"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_embedder(tmp_path_factory.mktemp("model") / "bert", "bert")


def train(model: Any, folder: Path) -> None:
    """As the golden path does it."""
    rows = [{"anchor": f"question {n} {n * 7}", "positive": f"the answer is {n}"} for n in range(64)]
    trainer = SentenceTransformerTrainer(
        model=model,
        train_dataset=Dataset.from_list(rows),
        loss=losses.MultipleNegativesRankingLoss(model),
        args=Arguments(
            output_dir=str(folder / "output"),
            num_train_epochs=2,
            per_device_train_batch_size=16,
            learning_rate=5e-3,
            warmup_ratio=0.03,
            lr_scheduler_type="constant_with_warmup",
            bf16=is_bf16_supported() and torch.cuda.is_available(),
            fp16=False,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            logging_steps=50,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
        ),
    )
    trainer.train()


def test_the_golden_path(bert: Path, tmp_path: Path) -> None:
    model = FastSentenceTransformer.from_pretrained(
        model_name=str(bert), max_seq_length=64, full_finetuning=False
    )
    before = model.encode(TEXTS)
    model = FastSentenceTransformer.get_peft_model(
        model,
        r=8,
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        target_modules=["key", "query", "value", "dense"],
        use_gradient_checkpointing=False,
        task_type="FEATURE_EXTRACTION",
        random_state=3407,
    )
    np.testing.assert_array_equal(model.encode(TEXTS), before)
    train(model, tmp_path)
    after = model.encode(TEXTS)
    assert not np.allclose(after, before, atol=1e-3)
    model.save_pretrained(str(tmp_path / "adapter"))
    model.save_pretrained_merged(str(tmp_path / "merged"))
    for folder in ("adapter", "merged"):
        plain = SentenceTransformer(str(tmp_path / folder), device="cpu")
        np.testing.assert_allclose(plain.encode(TEXTS), after, atol=2e-6)
    again = FastSentenceTransformer.from_pretrained(str(tmp_path / "adapter"), for_inference=True)
    np.testing.assert_allclose(again.encode(TEXTS), after, atol=2e-6)
    np.testing.assert_allclose(
        FastSentenceTransformer.from_pretrained(str(tmp_path / "adapter")).encode(TEXTS), after, atol=2e-6
    )


def test_gguf_files_are_proven(bert: Path, tmp_path: Path) -> None:
    model = FastSentenceTransformer.get_peft_model(FastSentenceTransformer.from_pretrained(str(bert)), r=4)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.normal_(std=0.05)
    result = model.save_pretrained_gguf(str(tmp_path / "gguf"), quantization_method=["f16", "q8_0"])
    assert result.status == "pass"
    assert {"f16", "q8_0"} <= set(result.paths) and all(path.exists() for path in result.paths.values())


def test_full_finetuning_trains_all_that_is_read(bert: Path, tmp_path: Path) -> None:
    model = FastSentenceTransformer.from_pretrained(str(bert), full_finetuning=True)
    frozen = [name for name, param in model.named_parameters() if not param.requires_grad]
    assert frozen and all(".pooler." in name for name in frozen)
    model.save_pretrained_merged(str(tmp_path / "whole"))
    plain = SentenceTransformer(str(tmp_path / "whole"), device="cpu")
    np.testing.assert_allclose(plain.encode(TEXTS), model.encode(TEXTS), atol=1e-6)


def test_a_plain_decoder_takes_its_last_token(tmp_path: Path) -> None:
    folder = save_transformer(tmp_path / "qwen3", "qwen3")
    model = FastSentenceTransformer.from_pretrained(str(folder))
    assert model[1].pooling_mode == "lasttoken"
    assert FastSentenceTransformer.from_pretrained(str(folder), pooling_mode="cls")[1].pooling_mode == "cls"


def test_what_does_not_fit_is_refused(bert: Path) -> None:
    model = FastSentenceTransformer.from_pretrained(str(bert))
    with pytest.raises(WhetError, match="SEQ_CLS"):
        FastSentenceTransformer.get_peft_model(model, task_type="SEQ_CLS")
    with pytest.raises(WhetError, match="loftq_config"):
        FastSentenceTransformer.get_peft_model(model, loftq_config={"bits": 4})
    with pytest.raises(WhetError, match="no_such"):
        FastSentenceTransformer.get_peft_model(model, target_modules=["no_such"])
    with pytest.raises(WhetError, match="pooling_mode='middle'"):
        FastSentenceTransformer.from_pretrained(str(bert), pooling_mode="middle")
    adapted = FastSentenceTransformer.get_peft_model(model, r=4)
    with pytest.raises(WhetError, match="already has an adapter"):
        FastSentenceTransformer.get_peft_model(adapted)
