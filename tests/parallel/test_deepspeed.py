"""DeepSpeed's own file beside a recipe: what it leaves open is filled in, what differs is named."""

from __future__ import annotations

import json
import math
import os
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.ranks import drive
from support.tiny_models import build_tiny_model
from support.tiny_runs import tiny_recipe, write_chat_rows

from whet.engine.errors import WhetError
from whet.engine.methods.deepspeed_run import DeepSpeedRun, refuse_code
from whet.engine.methods.resuming import deepspeed_ranks
from whet.engine.methods.sft.run_trainer import RunTrainer
from whet.engine.parallel.deepspeed import deepspeed_config, filled
from whet.engine.plan import Plan, make_plan

INSTALLED = find_spec("deepspeed") is not None


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHET_HOME", str(folder / "home"))
        model, rows = build_tiny_model(folder / "llama"), write_chat_rows(folder / "rows.jsonl", 24)
        plan = make_plan(tiny_recipe(model, rows))
    shared = {"strategy": "deepspeed", "ranks": 2, "gradient_accumulation": 1}
    return plan.model_copy(update={"resolved": plan.resolved.model_copy(update=shared)})


def asked(plan: Plan, path: Path, config: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a file comes to where the package is there."""
    monkeypatch.setattr("whet.engine.parallel.deepspeed.find_spec", lambda name: name)
    path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    hardware = plan.recipe.hardware.model_copy(update={"deepspeed": str(path)})
    return deepspeed_config(plan.recipe.model_copy(update={"hardware": hardware}), plan.resolved)


def test_what_the_file_leaves_open_is_the_recipes(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero = {"stage": 2, "overlap_comm": True}
    optimizer = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}}
    said = {
        "zero_optimization": zero,
        "train_batch_size": "auto",
        "optimizer": optimizer,
        "fp16": {"enabled": False},
    }
    config = asked(plan, tmp_path / "ds.json", said, monkeypatch)
    assert config["zero_optimization"] == zero
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (2, 1)
    assert config["train_batch_size"] == plan.resolved.rows_per_step == 4
    assert config["gradient_clipping"] == plan.recipe.training.max_grad_norm
    assert config["bf16"] == config["fp16"] == {"enabled": False}
    assert config["optimizer"] == {"type": "AdamW", "params": {"lr": 5e-3, "betas": [0.9, 0.999]}}
    assert said["optimizer"]["params"]["lr"] == "auto"  # type: ignore[index]


@pytest.mark.parametrize(
    ("config", "there", "here"),
    [
        ({"train_batch_size": 16}, "train_batch_size is 16", "4 here"),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu is 8", "2 here"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2", "1 here"),
        ({"gradient_clipping": 0.25}, "gradient_clipping is 0.25", "1.0 here"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is True", "training.precision"),
        ({"optimizer": {"params": {"lr": 1e-5}}}, "optimizer.params.lr is 1e-05", "0.005 here"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler.type is WarmupLR", "training.scheduler"),
    ],
)
def test_a_contradiction_names_both_values(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any, there: str, here: str
) -> None:
    with pytest.raises(WhetError) as raised:
        asked(plan, tmp_path / "ds.json", {"zero_optimization": {"stage": 1}} | config, monkeypatch)
    assert raised.value.code == "deepspeed.contradiction"
    assert there in str(raised.value) and here in str(raised.value) and "auto" in str(raised.value)


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ("{", "deepspeed.file"),
        ([], "deepspeed.file"),
        ({}, "deepspeed.stage"),
        ({"zero_optimization": {"stage": 3}}, "deepspeed.stage"),
        ({"zero_optimization": 2}, "deepspeed.stage"),
    ],
)
def test_files_that_do_not_serve(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any, code: str
) -> None:
    with pytest.raises(WhetError) as raised:
        asked(plan, tmp_path / "ds.json", config, monkeypatch)
    assert raised.value.code == code


@pytest.mark.skipif(INSTALLED, reason="deepspeed is installed")
def test_without_the_package_its_name_is_told(plan: Plan) -> None:
    hardware = plan.recipe.hardware.model_copy(update={"deepspeed": "ds.json"})
    with pytest.raises(WhetError, match="pip install deepspeed"):
        deepspeed_config(plan.recipe.model_copy(update={"hardware": hardware}), plan.resolved)


def test_a_part_that_is_no_object_is_not_entered(plan: Plan) -> None:
    config = filled({"optimizer": {"params": "auto"}}, plan.recipe, plan.resolved)
    assert config["optimizer"] == {"params": "auto"}


def test_states_in_shares_are_refused_by_another_number_of_processes(tmp_path: Path) -> None:
    folder = tmp_path / "step-000004"
    (folder / "global_step4").mkdir(parents=True)
    for rank in range(2):
        (folder / "global_step4" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    assert deepspeed_ranks(folder) == 2 and deepspeed_ranks(tmp_path) == 0
    trainer = DeepSpeedRun.__new__(DeepSpeedRun)
    trainer.is_deepspeed_enabled = False
    with pytest.raises(WhetError, match=r"2 processes of DeepSpeed.* without DeepSpeed"):
        trainer.train(str(folder))


def test_numbers_that_are_not_finite_are_seen_after_deepspeeds_step() -> None:
    """accelerate lets it step at the end of the backward pass: what the weights were is not said of them."""
    trainer = RunTrainer.__new__(RunTrainer)
    said: list[Any] = []
    trainer.is_deepspeed_enabled, trainer.emit = True, said.append
    trainer.state = SimpleNamespace(global_step=0)  # type: ignore[assignment]
    trainer.accelerator = SimpleNamespace(scaler=None)
    trainer.args = SimpleNamespace(learning_rate=2e-2, max_grad_norm=1.0)  # type: ignore[assignment]
    error = trainer._not_finite("loss", math.nan)
    assert error.code == "train.not_finite" and "not changed" not in error.message
    assert "may be broken" in error.message and "checkpoints are untouched" in error.message
    (finding,) = [event.finding for event in said]
    assert finding.id == "T01" and finding.fix.patch == {"training.learning_rate": 2e-4}
    assert "module" not in finding.evidence  # of weights that the step may have broken


class Surprise:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize("kind", ["code", "legacy", "no file of torch"])
def test_states_that_name_code_are_never_loaded(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "step-000004" / "global_step4" / "mp_rank_00_model_states.pt"
    file.parent.mkdir(parents=True)
    torch.save({"module": torch.ones(2), "step": 4}, file)
    refuse_code(tmp_path / "step-000004")
    if kind == "no file of torch":
        file.write_bytes(b"\x80\x04.")
    else:
        torch.save({"module": Surprise()}, file, _use_new_zipfile_serialization=kind == "code")
    with pytest.raises(WhetError) as raised:
        refuse_code(tmp_path / "step-000004")
    assert raised.value.code == "deepspeed.checkpoint_code"
    assert kind != "code" or "system" in str(raised.value)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs deepspeed, and minutes to build its part for the CPU")
def test_two_processes_of_deepspeed_have_the_losses_of_one(tmp_path: Path) -> None:
    model, rows = build_tiny_model(tmp_path / "llama"), write_chat_rows(tmp_path / "rows.jsonl", 22)
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}, "zero_force_ds_cpu_optimizer": False,
                                "zero_allow_untested_optimizer": True}))  # fmt: skip
    shares = {"ranks": 2, "strategy": "deepspeed"}
    adapter = {"dropout": 0.0}
    one = tiny_recipe(model, rows, adapter=adapter).model_dump(mode="json")
    two = tiny_recipe(model, rows, adapter=adapter, hardware={"deepspeed": str(file)}).model_dump(mode="json")
    runs = drive(
        tmp_path,
        {
            "one": (one, [{"ranks": 1}]),
            "two": (two, [shares]),
            "two, two": (two, [{**shares, "stop": 3}, shares]),
        },
    )
    for mine, others in zip(runs["one"]["steps"], runs["two"]["steps"], strict=True):
        assert mine == pytest.approx(others, rel=1e-5)
    assert runs["two"]["steps"] == runs["two, two"]["steps"]
    assert runs["two"]["weights"] == runs["two, two"]["weights"]
