"""`SFTTrainer` with the arguments of any generation; whet's models in TRL's own trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainingArguments

from whet.engine import FastLanguageModel, SFTConfig, SFTTrainer
from whet.engine.errors import WhetError
from whet.engine.python_api.checkpointing import is_checkpointing
from whet.engine.python_api.notes import WhetNote

ROWS = [{"text": f"The number {n} comes after {n - 1}."} for n in range(1, 17)]
QUICK: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "logging_steps": 1,
}


@pytest.fixture
def loaded(tiny_llama: Path) -> tuple[Any, Any]:
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(tiny_llama), max_seq_length=128, load_in_4bit=False
    )
    model = FastLanguageModel.get_peft_model(model, r=4, use_gradient_checkpointing=False)
    return model, tokenizer


def trainer_for(
    loaded: tuple[Any, Any], folder: Path, *, config: dict | None = None, **given: Any
) -> SFTTrainer:
    model, tokenizer = loaded
    given = {"train_dataset": Dataset.from_list(ROWS), **given}
    return SFTTrainer(
        model=model, tokenizer=tokenizer, args=SFTConfig(str(folder), **QUICK, **(config or {})), **given
    )


def test_takes_every_older_argument(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    rows = Dataset.from_list([{"body": row["text"]} for row in ROWS])
    trainer = trainer_for(
        loaded,
        tmp_path,
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
        dataset_text_field="body",
        max_seq_length=8,
        packing=False,
        dataset_num_proc=1,
        neftune_noise_alpha=5,
        dataset_kwargs={"add_special_tokens": False},
    )
    assert max(len(row["input_ids"]) for row in trainer.train_dataset) == 8
    assert trainer.args.neftune_noise_alpha == 5
    assert "eval_loss" in trainer.evaluate()


def test_the_models_choices_are_the_defaults(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    assert trainer_for(loaded, tmp_path).args.max_length == 128
    assert not is_checkpointing(trainer_for(loaded, tmp_path).model)
    chosen = trainer_for(loaded, tmp_path, config={"max_length": 64, "gradient_checkpointing": True})
    assert chosen.args.max_length == 64
    # The fast path recomputes; transformers' own checkpointing would do it a second time.
    assert is_checkpointing(chosen.model) and not chosen.args.gradient_checkpointing


def test_the_callers_configuration_is_not_changed(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = loaded
    config = SFTConfig(str(tmp_path), **QUICK)
    before = config.max_length
    SFTTrainer(model=model, tokenizer=tokenizer, args=config, train_dataset=ROWS, max_seq_length=9)
    assert config.max_length == before


def test_packing_makes_fewer_rows(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    trainer = trainer_for(loaded, tmp_path, packing=True)
    assert len(trainer.train_dataset) < len(ROWS)
    trainer.train()
    assert trainer.stats.loss > 0


def test_plain_training_arguments_serve(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = loaded
    args = TrainingArguments(str(tmp_path), max_steps=3, learning_rate=0.0123, report_to="none")
    trainer = SFTTrainer(model=model, args=args, train_dataset=ROWS, tokenizer=tokenizer, max_seq_length=32)
    assert (trainer.args.max_steps, trainer.args.learning_rate) == (3, 0.0123)
    assert trainer.args.max_length == 32


def test_assistant_only_loss_needs_no_generation_tags(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    trainer = trainer_for(
        loaded, tmp_path, config={"assistant_only_loss": True}, train_dataset=[{"conversations": turns}] * 4
    )
    labels = [label for label in trainer.train_dataset[0]["labels"] if label != -100]
    assert loaded[1].decode(labels).startswith("Hello")


def test_a_head_among_an_adapters_targets_is_trained_whole(tiny_llama: Path, tmp_path: Path) -> None:
    loaded = FastLanguageModel.from_pretrained(str(tiny_llama), load_in_4bit=False)
    asked = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    with pytest.warns(WhetNote, match="lm_head"):
        trainer = trainer_for(loaded, tmp_path, peft_config=asked)
    assert trainer.model.peft_config["default"].modules_to_save == ["lm_head"]
    assert asked.modules_to_save is None


def test_rows_may_stream(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    rows = Dataset.from_list(ROWS).to_iterable_dataset()
    trainer = trainer_for(loaded, tmp_path, train_dataset=rows)
    trainer.train()
    assert trainer.stats.supervised_tokens > 0


def test_a_row_that_cannot_be_used_is_an_error_out_of_worker_processes_too(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    bad = [{"messages": [{"role": "wizard", "content": "Hi"}]}] * 4
    with pytest.raises(WhetError, match="wizard"):
        trainer_for(loaded, tmp_path, train_dataset=bad, dataset_num_proc=2)


def test_an_unknown_argument_gets_the_nearest(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(WhetError, match="callbacks"):
        trainer_for(loaded, tmp_path, callback=[])


def test_no_telemetry_leaves(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl.trainer.base_trainer as base

    sent: list[Any] = []
    monkeypatch.setattr(base, "send_telemetry", lambda *args, **kwargs: sent.append((args, kwargs)))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    trainer_for(loaded, tmp_path)
    assert sent == []


def test_embeddings_learn_at_their_own_rate(tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama), load_in_4bit=False)
    with pytest.warns(WhetNote, match="trained whole"):
        model = FastLanguageModel.get_peft_model(
            model, r=4, target_modules=["q_proj", "embed_tokens", "lm_head"]
        )
    trainer = trainer_for((model, tokenizer), tmp_path, config={"embedding_learning_rate": 5e-6})
    optimizer = trainer.create_optimizer()
    slow = [p for group in optimizer.param_groups if group["lr"] == 5e-6 for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    counted = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(slow) == 2
    assert {p.shape[0] for p in slow} == {model.config.vocab_size}
    assert sorted(map(id, counted)) == sorted(map(id, trained))
    trainer.train()


def test_an_embedding_rate_without_embeddings_is_refused(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    trainer = trainer_for(loaded, tmp_path, config={"embedding_learning_rate": 5e-6})
    with pytest.raises(WhetError) as refused:
        trainer.create_optimizer()
    assert refused.value.code == "train.no_embeddings"


def test_trls_own_trainer_takes_whets_model(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    from whet.engine import train_on_responses_only

    model, tokenizer = loaded
    chats = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"Yes, {n}."}]}
        for n in range(8)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.SFTTrainer(
            model=model,
            args=trl.SFTConfig(str(tmp_path), bf16=False, **QUICK),
            train_dataset=Dataset.from_list(chats),
            processing_class=tokenizer,
        )
    trainer = train_on_responses_only(trainer)
    labels = [label for label in trainer.train_dataset[3]["labels"] if label != -100]
    assert tokenizer.decode(labels).startswith("Yes, 3.")
    assert torch.isfinite(torch.tensor(trainer.train().training_loss))
