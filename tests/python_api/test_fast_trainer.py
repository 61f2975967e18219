"""The trainer on the fast path: any collator, packing, every kind of adapter, and where TRL's loss serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import DataCollatorForSeq2Seq

from whet.engine import FastLanguageModel, SFTConfig, SFTTrainer
from whet.engine.methods.flat_optimizer import FlatAdamW
from whet.engine.methods.sft.fast_choice import mixed_reason
from whet.engine.models.fast_path import program_of, take_off_fast_path
from whet.engine.python_api.checkpointing import is_checkpointing
from whet.engine.python_api.notes import WhetNote

ROWS = [{"text": f"The number {n} comes after {n - 1}." + " And so on." * (n % 3)} for n in range(1, 17)]
QUICK: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "logging_steps": 1,
}


def adapted(path: Path, **options: Any) -> tuple[Any, Any]:
    loaded, tokenizer = FastLanguageModel.from_pretrained(str(path), max_seq_length=128, load_in_4bit=False)
    return FastLanguageModel.get_peft_model(loaded, r=4, **options), tokenizer


def trainer_for(
    loaded: tuple[Any, Any],
    folder: Path,
    config: dict[str, Any] | None = None,
    kind: type[SFTTrainer] = SFTTrainer,
    **given: Any,
) -> SFTTrainer:
    model, tokenizer = loaded
    given = {"train_dataset": Dataset.from_list(ROWS), **given}
    args = SFTConfig(str(folder), **(QUICK | (config or {})))
    return kind(model=model, processing_class=tokenizer, args=args, **given)


def losses_of(trainer: SFTTrainer) -> list[float]:
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("packing", [False, True])
def test_the_fast_path_trains_as_trls_own_loss(tiny_llama: Path, tmp_path: Path, packing: bool) -> None:
    """The same script with TRL's loss asked for by a compute_loss of its own."""

    class Plain(SFTTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs)

    config: dict[str, Any] = {"gradient_accumulation_steps": 2, "max_steps": 6, "learning_rate": 1e-2}
    config |= {"packing": packing, "max_length": 64, "eval_packing": False}
    rows = Dataset.from_list(ROWS)
    fast = trainer_for(adapted(tiny_llama), tmp_path, config, eval_dataset=rows)
    with pytest.warns(WhetNote, match="compute_loss of its own"):
        plain = trainer_for(adapted(tiny_llama), tmp_path, config, Plain, eval_dataset=rows)
    assert fast.fast is not None and plain.fast is None
    assert losses_of(fast) == pytest.approx(losses_of(plain), rel=1e-5)
    logged = [[log[name] for log in each.state.log_history[:-1]] for each in (fast, plain)
              for name in ("num_tokens", "mean_token_accuracy")]  # fmt: skip
    assert logged[0] == logged[2] and logged[1] == pytest.approx(logged[3], abs=0.05)
    assert isinstance(fast.optimizer.optimizer, FlatAdamW)
    assert fast.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-4)


def test_a_collator_of_the_scripts_own_decides_what_is_supervised(tiny_llama: Path, tmp_path: Path) -> None:
    class LastTokenOnly(DataCollatorForSeq2Seq):
        def __call__(self, features: Any, return_tensors: Any = None) -> Any:
            batch = super().__call__([{"input_ids": f["input_ids"], "labels": f["labels"]} for f in features])
            batch["labels"][:, 2:] = -100
            return batch.data

    loaded = adapted(tiny_llama)
    trainer = trainer_for(loaded, tmp_path, data_collator=LastTokenOnly(loaded[1]))
    trainer.train()
    assert trainer.fast is not None
    assert trainer.stats.supervised_tokens == 2  # the second token of each of two rows


def test_a_batch_with_more_in_it_goes_through_the_model(tiny_llama: Path, tmp_path: Path) -> None:
    """Position ids that do not count from 0 are something the packed rows do not know."""

    class Shifted(DataCollatorForSeq2Seq):
        def __call__(self, features: Any, return_tensors: Any = None) -> Any:
            batch = super().__call__([{"input_ids": f["input_ids"], "labels": f["labels"]} for f in features])
            batch["position_ids"] = torch.arange(7, 7 + batch["input_ids"].shape[1]).expand_as(
                batch["input_ids"]
            )
            return batch.data

    loaded = adapted(tiny_llama)
    trainer = trainer_for(loaded, tmp_path, data_collator=Shifted(loaded[1]))
    batch = next(iter(trainer.get_train_dataloader()))
    assert "rows" not in batch and "position_ids" in batch
    assert all(loss > 0 for loss in losses_of(trainer))


def test_metrics_get_padded_predictions(tiny_llama: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def count(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {"rows": float(len(prediction.label_ids))}

    rows = Dataset.from_list(ROWS[:4])
    trainer = trainer_for(adapted(tiny_llama), tmp_path, eval_dataset=rows, compute_metrics=count)
    assert trainer.evaluate()["eval_rows"] == 4
    assert seen


def test_an_adapter_from_the_trainers_own_argument_is_on_the_fast_path(
    tiny_llama: Path, tmp_path: Path
) -> None:
    loaded = FastLanguageModel.from_pretrained(str(tiny_llama), max_seq_length=128, load_in_4bit=False)
    asked = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = trainer_for(loaded, tmp_path, peft_config=asked)
    assert trainer.fast is not None and is_checkpointing(trainer.model)
    assert all(loss > 0 for loss in losses_of(trainer))


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_dropout": 0.2},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=str,
)
def test_every_kind_of_adapter_learns(tiny_llama: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    loaded = adapted(tiny_llama, **options)
    before = {n: p.detach().clone() for n, p in loaded[0].named_parameters() if p.requires_grad}
    config = {"max_steps": 12, "learning_rate": 1e-2, "per_device_train_batch_size": 8}
    losses = losses_of(trainer_for(loaded, tmp_path, config=config))
    assert losses[-1] < losses[0]
    unmoved = [n for n, p in loaded[0].named_parameters() if p.requires_grad and torch.equal(p, before[n])]
    assert unmoved == []


def test_a_model_in_fp32_under_mixed_precision_stays_with_trl(tiny_llama: Path, tmp_path: Path) -> None:
    program = program_of(adapted(tiny_llama)[0])
    assert program is not None
    config = SFTConfig(str(tmp_path), **QUICK)
    config.bf16 = True
    assert "fp32" in str(mixed_reason(config, program.dtype))
    assert mixed_reason(config, torch.bfloat16) is None


@pytest.mark.parametrize("bits", [4, 8])
def test_a_rounded_base_trains_alike_and_is_read_anew_once_merged(
    tiny_llama: Path, tmp_path: Path, bits: int
) -> None:
    """Merging into rounded weights makes new ones; a program that kept the old ones would be wrong."""

    class Plain(SFTTrainer):
        """TRL's trainer on transformers' decoder."""

        def _prepare_model(self) -> None:
            take_off_fast_path(self.model)

    trainers = []
    for kind in (SFTTrainer, Plain):
        loaded, tokenizer = FastLanguageModel.from_pretrained(
            str(tiny_llama), max_seq_length=128, load_in_4bit=bits == 4, load_in_8bit=bits == 8
        )
        model = FastLanguageModel.get_peft_model(loaded, r=4)
        config = {"learning_rate": 1e-3, "max_steps": 5}
        rows = Dataset.from_list(ROWS)
        trainers.append(trainer_for((model, tokenizer), tmp_path, config, kind, eval_dataset=rows))
    fast, plain = trainers
    assert fast.fast is not None and plain.fast is None
    assert losses_of(fast) == pytest.approx(losses_of(plain), rel=1e-4 if bits == 4 else 2e-2)
    for trainer in trainers:
        trainer.model.merge_adapter()
    assert not fast.fast.program.is_current()
    merged = fast.evaluate()["eval_loss"]
    assert merged == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-4 if bits == 4 else 2e-2)
    assert fast.fast.program.is_current()


def test_a_changed_model_that_leaves_the_fast_path_is_said(tiny_llama: Path, tmp_path: Path) -> None:
    trainer = trainer_for(adapted(tiny_llama), tmp_path)
    assert trainer.fast is not None
    trainer.model.add_adapter("second", trainer.model.peft_config["default"])
    trainer.model.set_adapter("second")
    trainer.args.label_smoothing_factor = 0.1
    with pytest.warns(UserWarning, match="slower from now on: labels are smoothed"):
        losses = losses_of(trainer)
    assert trainer.fast is None and len(losses) == 2


def test_a_step_goes_through_at_once_where_it_fits(tiny_llama: Path, tmp_path: Path) -> None:
    """Four micro-batches of the script are one, nothing is computed twice, and the loss is the same."""
    config = {"gradient_accumulation_steps": 4, "learning_rate": 1e-3}
    trainer = trainer_for(adapted(tiny_llama), tmp_path, config)
    assert is_checkpointing(trainer.model)  # until it is known how much there is to hold
    once = losses_of(trainer)
    assert trainer.fast is not None and not is_checkpointing(trainer.model)
    assert trainer.fast.budget >= 8 * max(len(row["input_ids"]) for row in trainer.train_dataset)
    apart = trainer_for(adapted(tiny_llama, use_dora=True), tmp_path, config)
    first, _ = losses_of(apart)
    assert apart.fast is not None and apart.fast.budget < trainer.fast.budget / 2
    assert once[0] == pytest.approx(first, rel=1e-5)  # before any step an adapter of any kind is the base
