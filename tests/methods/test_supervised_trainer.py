"""The loss is a mean over all supervised tokens of the step; bad numbers stop the run; packing isolates."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support.tiny_models import build_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

from whet.engine.errors import WhetError
from whet.engine.methods.sft.collation import PackingCollator, PaddingCollator, count_supervised, count_tokens
from whet.engine.methods.sft.job import pack_rows
from whet.engine.methods.sft.trainer import SupervisedTrainer

PAD = 0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def rows() -> Dataset:
    """Uneven lengths, uneven supervision, and a first token that carries a label nothing can predict."""
    draw = random.Random(0)
    made = []
    for index in range(16):
        ids = [draw.randint(0, 390) for _ in range(draw.randint(3, 40))]
        start = 0 if index % 3 == 0 else draw.randint(1, len(ids) - 1)
        made.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    return Dataset.from_list(made)


def trainer_of(
    base: Path, rows: Any, tmp_path: Path, collate: Any = None, **settings: Any
) -> SupervisedTrainer:
    arguments: dict[str, Any] = {
        "output_dir": str(tmp_path),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "bf16": False,
        "use_cpu": True,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    return SupervisedTrainer(
        AutoModelForCausalLM.from_pretrained(base, attn_implementation="sdpa"),
        SFTConfig(**(arguments | settings)),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(base),
        data_collator=collate or PaddingCollator(PAD),
    )


def model_of(trainer: SupervisedTrainer) -> Any:
    return trainer.model


def mean_nll(model: Any, rows: Any) -> float:
    """The reference: each row alone, plain logits, sum of token losses over the number of tokens."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        with torch.no_grad():
            logits_TV = model(torch.tensor([row["input_ids"]])).logits[0]
        labels_T = torch.tensor(row["labels"])[1:]
        loss = torch.nn.functional.cross_entropy(logits_TV[:-1], labels_T, ignore_index=-100, reduction="sum")
        total += loss.double()
        count += int(labels_T.ne(-100).sum())
    return float(total / count)


def losses(trainer: SupervisedTrainer) -> list[float]:
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def test_accumulation_changes_nothing(base: Path, rows: Dataset, tmp_path: Path) -> None:
    one = trainer_of(base, rows, tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    many = trainer_of(base, rows, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    assert losses(one) == pytest.approx(losses(many), rel=1e-5)
    assert one.stats.loss == pytest.approx(many.stats.loss, rel=1e-5)
    assert one.stats.grad_norm == pytest.approx(many.stats.grad_norm, rel=1e-4)
    assert (one.stats.tokens, one.stats.supervised_tokens) == (
        many.stats.tokens,
        many.stats.supervised_tokens,
    )
    left_model, right_model = model_of(one), model_of(many)
    for (name, left), right in zip(left_model.named_parameters(), right_model.parameters(), strict=True):
        # AdamW divides by the gradient's size: where that is near zero rounding decides, hence absolute.
        assert torch.allclose(left, right, atol=2e-3), name


def test_step_loss_is_the_mean_over_the_step(base: Path, rows: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(
        base, rows, tmp_path, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=8
    )
    expected = mean_nll(trainer.model, rows)
    trainer.train()
    assert trainer.stats.loss == pytest.approx(expected, rel=1e-5)
    assert trainer.stats.tokens == sum(len(row["input_ids"]) for row in rows)
    assert trainer.stats.supervised_tokens == sum(
        label != -100 for row in rows for label in row["labels"][1:]
    )


def test_eval_weighs_tokens_not_batches(base: Path, rows: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(base, rows, tmp_path)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(mean_nll(trainer.model, rows), rel=1e-5)
    assert metrics["eval_supervised_tokens"] == sum(label != -100 for r in rows for label in r["labels"][1:])


def test_evaluation_leaves_random_numbers_alone(base: Path, rows: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(base, rows, tmp_path)
    before = torch.random.get_rng_state()
    trainer.evaluate()
    assert torch.equal(before, torch.random.get_rng_state())


def test_nan_stops_before_the_weights_change(base: Path, rows: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(base, rows, tmp_path)
    with torch.no_grad():
        model_of(trainer).lm_head.weight[7, 0] = float("nan")
    before = model_of(trainer).model.embed_tokens.weight.clone()
    with pytest.raises(WhetError) as caught:
        trainer.train()
    assert caught.value.code == "train.not_finite"
    assert "step 1 is nan" in caught.value.message and "learning_rate" in caught.value.hint
    assert torch.equal(before, model_of(trainer).model.embed_tokens.weight)


def test_infinite_gradient_stops(base: Path, rows: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(base, rows, tmp_path)
    model_of(trainer).model.embed_tokens.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(WhetError) as caught:
        trainer.train()
    assert caught.value.code == "train.not_finite"
    assert "gradient norm of step 1" in caught.value.message


def test_nothing_is_sent(base: Path, rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def refuse(*address: object) -> None:
        raise AssertionError(f"a connection to {address} was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(losses(trainer_of(base, rows, tmp_path))) == 3


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_packed_rows_do_not_see_each_other(family: Any, rows: Dataset, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(build_tiny_model(tmp_path / family, family)).eval()
    packed = PackingCollator(rows, PAD)([{"rows": [0, 1, 2, 3]}, {"rows": [4]}])
    with torch.no_grad():
        together = model(
            input_ids=packed["input_ids"], position_ids=packed["position_ids"], use_cache=False
        ).logits
        start = 0
        for index in (0, 1, 2, 3):
            ids = torch.tensor([rows[index]["input_ids"]])
            alone = model(input_ids=ids).logits[0]
            assert torch.allclose(together[0, start : start + ids.shape[1]], alone, atol=1e-5), index
            start += ids.shape[1]


def test_packed_loss_is_the_padded_loss(base: Path, rows: Dataset, tmp_path: Path) -> None:
    bins = pack_rows(rows, 64)
    assert len(bins) < len(rows)
    collate = PackingCollator(rows, PAD)
    trainer = trainer_of(
        base, bins, tmp_path, collate, max_steps=1, gradient_accumulation_steps=-(-len(bins) // 2)
    )
    expected = mean_nll(trainer.model, rows)
    trainer.train()
    assert trainer.stats.loss == pytest.approx(expected, rel=1e-5)
    assert trainer.stats.tokens == sum(len(row["input_ids"]) for row in rows)


def test_padding_collator_shapes() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [5, -100, 7]},
        {"input_ids": list(range(9)), "labels": list(range(9))},
    ]
    batch = PaddingCollator(pad_id=3)(rows)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (2, 16),
        "labels": (2, 16),
        "attention_mask": (2, 16),
    }
    assert batch["input_ids"][0].tolist() == [5, 6, 7] + [3] * 13
    assert batch["labels"][0].tolist() == [-100, -100, 7] + [-100] * 13
    assert int(count_tokens(batch)) == 12
    assert int(count_supervised(batch["labels"])) == 1 + 8


def test_packing_collator_restarts_positions() -> None:
    rows = [{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}]
    batch = PackingCollator(Dataset.from_list(rows), pad_id=3)([{"rows": [0, 1]}])
    assert batch["position_ids"][0].tolist() == [0, 1, 0, 1, 2, 0, 0, 0]
    assert batch["labels"][0].tolist() == [-100, 6, -100, 8, 9, -100, -100, -100]
    assert "attention_mask" not in batch
    assert int(count_tokens(batch)) == 5
