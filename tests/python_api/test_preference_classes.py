"""Preference scripts of any generation run with only their import lines changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import PeftModel
from support.tiny_models import build_tiny_model
from transformers import AutoModelForCausalLM
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

import whet.engine as engine
from whet.engine import (
    DPOConfig,
    DPOTrainer,
    FastLanguageModel,
    PatchDPOTrainer,
    RewardConfig,
    RewardTrainer,
)
from whet.engine.errors import WhetError
from whet.engine.methods.flat_optimizer import FlatAdamW
from whet.engine.models.fast_path import DecoderProgram
from whet.engine.python_api.notes import WhetNote
from whet.engine.python_api.preference_classes import preference_arguments

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"the {thing}"}],
        "chosen": [{"role": "assistant", "content": f"yes the {thing} is good"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    for thing in ("river", "house", "road", "friend", "day", "book")
]
RATED = [
    {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
    for row in ROWS
    for name in ("chosen", "rejected")
]
"""Good and bad in turns: TRL leaves them in order, and a batch of one kind teaches nothing."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be sent home."""
    sent: list[str] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **said: sent.append(said["topic"]))
    return sent


def adapted(tiny: Path) -> tuple[Any, Any]:
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny), max_seq_length=64, load_in_4bit=False)
    return FastLanguageModel.get_peft_model(model, r=8, lora_alpha=16), tokenizer


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 3, "learning_rate": 5e-3,
        "report_to": "none", "logging_steps": 1, "save_strategy": "no", "warmup_ratio": 0.1, **more,
    }  # fmt: skip


def losses(trainer: Any) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def test_the_seeds_dpo_script_learns_and_saves_a_plain_adapter(
    tiny: Path, tmp_path: Path, quiet: list[str]
) -> None:
    PatchDPOTrainer()
    model, tokenizer = adapted(tiny)
    with pytest.warns(WhetNote, match="max_prompt_length"):
        trainer = DPOTrainer(
            model=model,
            ref_model=None,
            args=DPOConfig(**settings(tmp_path, bf16=True)),
            beta=0.2,
            train_dataset=ROWS,
            tokenizer=tokenizer,
            max_length=48,
            max_prompt_length=32,
        )
    assert (trainer.beta, trainer.args.max_length, trainer.args.bf16) == (0.2, 48, torch.cuda.is_available())
    assert list(model.peft_config) == ["default"]
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.6931, abs=1e-3) and losses(trainer)[-1] < 0.5
    assert quiet == []
    model.save_pretrained(tmp_path / "saved")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), tmp_path / "saved").eval()
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(plain(ids).logits, model.eval()(ids).logits, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_has_learnt_is_measured_from_as_it_was(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = adapted(tiny)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.normal_(std=0.1)
    trainer = DPOTrainer(
        model, args=DPOConfig(**settings(tmp_path)), train_dataset=ROWS, processing_class=tokenizer
    )
    assert list(model.peft_config) == ["default", "ref"]
    trainer.train()
    assert trainer.head.knows_reference
    assert losses(trainer)[0] == pytest.approx(0.6931, abs=1e-3) and losses(trainer)[-1] < 0.6


class Placed(DataCollatorForPreference):
    """A script's own collator, whose places the fast path does not take, with a reference of another run."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(super().torch_call(examples))
        batch["position_ids"] = batch["attention_mask"].cumsum(1).sub(1).clamp(min=0)
        return batch


def test_what_the_fast_path_does_not_take_has_trls_reference(tiny: Path, tmp_path: Path) -> None:
    found = []
    for own in (False, True):
        model, tokenizer = adapted(tiny)
        rows = Dataset.from_list(ROWS).map(lambda row: {"ref_chosen_logps": -50.0, "ref_rejected_logps": 0.0})
        trainer = DPOTrainer(
            model,
            args=DPOConfig(**settings(tmp_path)),
            train_dataset=rows,
            processing_class=tokenizer,
            data_collator=Placed(pad_token_id=tokenizer.pad_token_id) if own else None,
        )
        trainer.train()
        found.append(losses(trainer))
    assert found[0][0] == pytest.approx(0.6931, abs=1e-3)
    assert found[1] == pytest.approx(found[0], rel=1e-4)


PLAIN: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "DPO": (trl.DPOConfig, trl.DPOTrainer, {"beta": 0.3}),
    "ORPO": (ORPOConfig, ORPOTrainer, {}),
    "CPO": (CPOConfig, CPOTrainer, {"loss_type": "simpo"}),
    "KTO": (trl.KTOConfig, trl.KTOTrainer, {}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_its_kin_train_on_the_fast_path_as_trl_does_without(
    tiny: Path, tmp_path: Path, name: str, quiet: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[bool] = []
    answers = DecoderProgram.answers

    def counted(program: DecoderProgram, *args: Any) -> Any:
        passes.append(torch.is_grad_enabled())
        return answers(program, *args)

    monkeypatch.setattr(DecoderProgram, "answers", counted)
    model, tokenizer = adapted(tiny)
    model.save_pretrained(tmp_path / "fresh")
    config, trainer, more = PLAIN[name]
    asked = settings(tmp_path, **more)
    rows = RATED if name == "KTO" else ROWS
    owns = getattr(engine, f"{name}Config")(**asked)
    run = getattr(engine, f"{name}Trainer")(model, args=owns, train_dataset=rows, tokenizer=tokenizer)
    assert run.args.max_length == 64  # the model's
    run.train()
    assert passes.count(True) == 3 and passes.count(False) == 3 * run.forwards
    assert isinstance(run.flat, FlatAdamW)
    assert len(losses(run)) == 3 and losses(run)[-1] < losses(run)[0] and quiet == []
    base = AutoModelForCausalLM.from_pretrained(tiny)
    plain = trainer(
        PeftModel.from_pretrained(base, tmp_path / "fresh", is_trainable=True),
        args=config(**preference_arguments(config, asked | {"max_length": 64})),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    plain.train()
    assert losses(run) == pytest.approx(losses(plain), rel=1e-4)


def test_a_reward_script_learns_to_tell_answers_apart(tiny: Path, tmp_path: Path, quiet: list[str]) -> None:
    config = RewardConfig(**settings(tmp_path, max_steps=6, bf16=True, evaluation_strategy="no"))
    run = RewardTrainer(str(tiny), args=config, train_dataset=ROWS, tokenizer=adapted(tiny)[1], max_length=48)
    assert (run.args.max_length, run.args.bf16) == (48, torch.cuda.is_available())
    run.train()
    assert losses(run)[-1] < 0.5 * losses(run)[0] and quiet == []
    assert run.model.config.num_labels == 1


def test_a_reward_model_needs_a_score(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(WhetError, match="num_labels=1") as refused:
        RewardTrainer(adapted(tiny)[0], args=RewardConfig(str(tmp_path)), train_dataset=ROWS)
    assert refused.value.code == "python_api.no_score"
    with pytest.raises(WhetError, match="beta"):
        RewardTrainer(str(tiny), args=RewardConfig(str(tmp_path)), train_dataset=ROWS, beta=0.1)


def test_a_loss_that_the_trainer_was_told_is_the_configurations(tiny: Path, tmp_path: Path) -> None:
    arguments = DPOConfig(str(tmp_path), max_steps=1, report_to="none")
    trainer = DPOTrainer(str(tiny), None, arguments, loss_type="ipo", beta=0.3, train_dataset=ROWS)
    trainer.train()
    assert (trainer.loss_types, trainer.beta) == (["ipo"], 0.3)
    assert arguments.loss_type == ["sigmoid"]


def test_settings_of_older_trl_are_mapped_or_refused_by_name(tmp_path: Path) -> None:
    mixed = DPOConfig(str(tmp_path), rpo_alpha=0.5)
    assert (mixed.loss_type, mixed.loss_weights) == (["sigmoid", "sft"], [1.0, 0.5])
    weighed = DPOConfig(str(tmp_path), rpo_alpha=0.5, loss_type=["sigmoid", "ipo"], loss_weights=[1.0, 2.0])
    assert weighed.loss_weights == [1.0, 2.0, 0.5]
    with pytest.warns(WhetNote, match="padding_value"):
        DPOConfig(str(tmp_path), padding_value=0)
    for gone in ("reference_free", "generate_during_eval"):
        with pytest.raises(WhetError, match=gone):
            DPOConfig(str(tmp_path), **{gone: True})
    with pytest.raises(WhetError, match=r"CPOConfig has no argument 'simpo_gama'"):
        engine.CPOConfig(str(tmp_path), simpo_gama=1.0)
    assert isinstance(mixed, trl.DPOConfig)
