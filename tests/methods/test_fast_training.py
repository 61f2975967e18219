"""Training on the fast path is training with transformers and PEFT: loss by loss, over a hundred steps."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from support.tiny_models import build_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig

from whet.engine.methods.flat_optimizer import FlatAdamW
from whet.engine.methods.sft.collation import PaddingCollator
from whet.engine.methods.sft.trainer import SupervisedTrainer
from whet.engine.models.fast_path import apply_fast_path, program_of
from whet.engine.models.fast_path.decoder import FastDecoder

STEPS, PAD = 100, 0


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """Uneven lengths, so that batches are padded; uneven supervision; a first label nothing can predict."""
    draw = random.Random(0)
    made = []
    for index in range(48):
        ids = [draw.randint(8, 390) for _ in range(draw.randint(3, 40))]
        start = 0 if index % 3 == 0 else draw.randint(1, len(ids) - 1)
        made.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    return Dataset.from_list(made)


def adapted(base: Path, **options: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="sdpa", dtype=torch.float32)
    torch.manual_seed(0)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **(settings | options)))


class Losses(TrainerCallback):
    """Every step's loss and gradient norm, as the trainer measured them."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []
        self.stats: Any = None

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append((self.stats.loss, self.stats.grad_norm))


def trainer_of(model: Any, rows: Any, folder: Path, **settings: Any) -> SupervisedTrainer:
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "bf16": False,
        "use_cpu": True,
        "learning_rate": 2e-4,
        "warmup_steps": 10,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    folder.mkdir(exist_ok=True)
    return SupervisedTrainer(
        model,
        SFTConfig(**(arguments | settings)),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model.config.name_or_path),
        data_collator=PaddingCollator(PAD),
    )


def curve(trainer: SupervisedTrainer) -> list[tuple[float, float]]:
    watch = Losses()
    watch.stats = trainer.stats
    trainer.add_callback(watch)
    trainer.train()
    return watch.seen


@pytest.fixture(scope="module")
def expected(
    base: Path, rows: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[tuple[float, float]], float]:
    """transformers, PEFT and torch's AdamW; the held-out loss at the end."""
    trainer = trainer_of(adapted(base), rows, tmp_path_factory.mktemp("plain"))
    assert trainer.fast is None
    losses = curve(trainer)
    assert not isinstance(trainer.optimizer.optimizer, FlatAdamW)  # type: ignore[union-attr]
    return losses, trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize("mode", ["a step at once", "regrouped", "recomputed", "in chunks"])
def test_every_loss_is_that_of_transformers_and_peft(
    base: Path, rows: Dataset, tmp_path: Path, expected: Any, mode: str
) -> None:
    model = adapted(base)
    report = apply_fast_path(model, torch.float32)
    assert report.complete, str(report)
    trainer, program = trainer_of(model, rows, tmp_path), program_of(model)
    assert trainer.fast is not None and program is not None
    if mode == "regrouped":
        trainer.fast.budget = 50
        some = [trainer.data_collator([row])["rows"][0] for row in rows.select(range(6))]  # type: ignore[index]
        assert len(trainer.fast.batches(some)) > 2
    if mode == "recomputed":
        program.set_keep([False, True], [False, False])
    if mode == "in chunks":
        program.chunk = 17
    losses, eval_loss = curve(trainer), trainer.evaluate()["eval_loss"]
    assert isinstance(trainer.optimizer.optimizer, FlatAdamW)  # type: ignore[union-attr]
    assert len(losses) == STEPS
    assert [loss for loss, _ in losses] == pytest.approx([loss for loss, _ in expected[0]], rel=1e-5)
    assert [norm for _, norm in losses] == pytest.approx([norm for _, norm in expected[0]], rel=1e-3)
    assert eval_loss == pytest.approx(expected[1], rel=1e-5)
    assert losses[-1][0] < losses[0][0]


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True, "bias": "lora_only"},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": ["v_proj"], "layers_to_transform": [1]},
    ],
    ids=str,
)
def test_every_kind_of_adapter_trains_alike(
    base: Path, rows: Dataset, tmp_path: Path, options: dict[str, Any]
) -> None:
    plain, fast = adapted(base, **options), adapted(base, **options)
    report = apply_fast_path(fast, torch.float32)
    assert report.complete != bool(options.get("use_dora")), str(report)
    few = {"max_steps": 8, "warmup_steps": 2, "learning_rate": 1e-3}
    losses = [curve(trainer_of(model, rows, tmp_path, **few)) for model in (plain, fast)]
    assert [loss for loss, _ in losses[1]] == pytest.approx([loss for loss, _ in losses[0]], rel=2e-5)
    for (name, left), right in zip(plain.named_parameters(), fast.parameters(), strict=True):
        # Adam divides by a gradient's size: where that is near zero rounding decides, hence absolute.
        assert torch.allclose(left, right, atol=2e-3), name


def test_dropout_drops_as_often(base: Path, rows: Dataset, tmp_path: Path) -> None:
    """Other random numbers, the same distribution: the mean over many draws is that of PEFT."""
    model = randomised(adapted(base, lora_dropout=0.5)).train()
    ids = torch.tensor([rows[0]["input_ids"]])
    fast = copy.deepcopy(model)
    assert apply_fast_path(fast, torch.float32).complete

    def mean_loss(each: Any) -> torch.Tensor:
        torch.manual_seed(1)
        losses = [each(input_ids=ids, labels=ids, use_cache=False).loss.detach() for _ in range(200)]
        return torch.stack(losses)

    left, right = mean_loss(model), mean_loss(fast)
    error = (left.var() / 200 + right.var() / 200).sqrt()
    assert left.std() > 0 and abs(left.mean() - right.mean()) < 4 * error
    assert right.std() == pytest.approx(float(left.std()), rel=0.4)


def randomised(model: Any) -> Any:
    """B away from zero, so that the adapter does something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.copy_(0.1 * torch.randn(param.shape, generator=generator))
    return model


def padded(rows: Dataset, count: int = 3) -> dict[str, torch.Tensor]:
    batch = PaddingCollator(PAD)([rows[index] for index in range(count)])
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def fast_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Through the packed rows: without a cache asked for."""
    logits: torch.Tensor = model(**batch, use_cache=False).logits
    return torch.where(batch["attention_mask"].bool()[..., None], logits, 0)


@pytest.fixture
def pair(base: Path) -> tuple[Any, Any]:
    """A plain adapted model and the same on the fast path."""
    plain = randomised(adapted(base)).eval()
    fast = copy.deepcopy(plain)
    assert apply_fast_path(fast, torch.float32).complete
    return plain, fast


def alike(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.allclose(left, right, atol=1e-5, rtol=1e-5)


def test_packed_logits_are_the_separate_logits(pair: tuple[Any, Any], rows: Dataset) -> None:
    plain, fast = pair
    together = fast_logits(fast, padded(rows, 6))
    for index in range(6):
        ids = torch.tensor([rows[index]["input_ids"]])
        assert alike(together[index, : ids.shape[1]], plain(ids).logits[0]), index


def test_an_adapter_switched_off_is_the_base(pair: tuple[Any, Any], base: Path, rows: Dataset) -> None:
    _, fast = pair
    batch = padded(rows)
    with_adapter = fast_logits(fast, batch)
    with fast.disable_adapter():
        without = fast_logits(fast, batch)
    expected = fast_logits(AutoModelForCausalLM.from_pretrained(base), batch)
    assert alike(without, expected) and not alike(without, with_adapter)
    assert alike(fast_logits(fast, batch), with_adapter)


def test_a_look_at_the_base_between_forward_and_backward_changes_no_gradient(
    pair: tuple[Any, Any], rows: Dataset
) -> None:
    """As losses with a reference model do it."""
    batch, gradients = padded(rows), []
    for model in pair:
        loss = fast_logits(model, batch).square().mean()
        with torch.no_grad(), model.disable_adapter():
            model(**batch, use_cache=False)
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, atol=1e-6, rtol=1e-4), name


def test_merging_and_unmerging_is_followed(pair: tuple[Any, Any], rows: Dataset) -> None:
    plain, fast = pair
    batch = padded(rows)
    expected = fast_logits(plain, batch)
    fast.merge_adapter()
    assert program_of(fast).is_current()  # type: ignore[union-attr]
    assert alike(fast_logits(fast, batch), expected)
    with fast.disable_adapter():  # PEFT unmerges for it
        assert not alike(fast_logits(fast, batch), expected)
    fast.unmerge_adapter()
    assert alike(fast_logits(fast, batch), expected)


def test_a_safe_merge_is_noticed(pair: tuple[Any, Any], rows: Dataset) -> None:
    """It puts other tensors in place: the forward pass says so and is right, and reading anew helps."""
    plain, fast = pair
    batch = padded(rows)
    expected = fast_logits(plain, batch)
    fast.merge_adapter(safe_merge=True)
    with pytest.warns(UserWarning, match="apply_fast_path"):
        assert alike(fast_logits(fast, batch), expected)
    apply_fast_path(fast, torch.float32)
    assert program_of(fast).is_current()  # type: ignore[union-attr]
    assert alike(fast_logits(fast, batch), expected)


def test_a_second_adapter_is_read_before_it_trains(base: Path, rows: Dataset, tmp_path: Path) -> None:
    losses = []
    for fast in (False, True):
        model = randomised(adapted(base))
        if fast:
            apply_fast_path(model, torch.float32)
        trainer = trainer_of(model, rows, tmp_path, max_steps=3, learning_rate=1e-3)
        torch.manual_seed(2)
        model.add_adapter("other", LoraConfig(r=8, target_modules=["q_proj", "up_proj"], lora_alpha=32))
        model.set_adapter("other")
        losses.append([loss for loss, _ in curve(trainer)])
        assert (trainer.fast is not None) == fast
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_merged_and_unloaded_the_model_is_whole(pair: tuple[Any, Any], rows: Dataset) -> None:
    plain, fast = pair
    ids = padded(rows, 1)["input_ids"]
    expected = plain(ids).logits
    merged = fast.merge_and_unload()
    assert not isinstance(merged, PeftModel)
    with pytest.warns(UserWarning, match="apply_fast_path"):
        assert torch.allclose(merged(ids).logits, expected, atol=1e-5)
    assert apply_fast_path(merged.requires_grad_(True), torch.float32).fused["decoder"] == 0
    assert not isinstance(merged.model, FastDecoder)  # all weights train: plain transformers again


def test_generation_is_transformers_own(pair: tuple[Any, Any], rows: Dataset) -> None:
    plain, fast = pair
    batch = padded(rows, 1)
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(fast.generate(**batch, **options), plain.generate(**batch, **options))


def test_the_adapter_is_saved_as_peft_saves_it(pair: tuple[Any, Any], base: Path, tmp_path: Path) -> None:
    plain, fast = pair
    for name, model in (("plain", plain), ("fast", fast)):
        model.save_pretrained(tmp_path / name)
    left, right = (tmp_path / name / "adapter_model.safetensors" for name in ("plain", "fast"))
    assert left.read_bytes() == right.read_bytes()
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "fast")
    ids = torch.tensor([[9, 10, 11]])
    assert alike(reloaded(ids).logits, plain(ids).logits)


def test_an_adapter_on_the_head_stays_with_transformers(base: Path) -> None:
    report = apply_fast_path(adapted(base, target_modules=["q_proj", "lm_head"]), torch.float32)
    assert not report.complete and "output layer" in str(report)
