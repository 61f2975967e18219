"""The plan: exact settings with origins, steps, memory with ways out, and no torch on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import (
    LLAMA_8B,
    chat_recipe,
    gpu,
    machine,
    model_facts,
    plan_for,
    recipe,
    report,
    write_chats,
)
from support.tiny_models import build_tiny_model

from whet.engine.data.token_store import prepare
from whet.engine.gguf_fit import gguf_refusal
from whet.engine.hardware import Machine
from whet.engine.models.facts import ModelFacts, read_model_facts
from whet.engine.plan import Plan, make_plan
from whet.engine.rates import known_rate, record_rate
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import build, patched
from whet.engine.resolve import RECIPE_KEYS, Resolved, recipe_origins, resolve


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("plan") / "model", "llama")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path / "home"


def test_healthy_local_plan(tiny_model: Path, tmp_path: Path) -> None:
    data = write_chats(tmp_path / "chats.jsonl", 1200)
    plan = make_plan(chat_recipe(tiny_model, data, data__eval_fraction=0.05))
    assert [finding for finding in plan.findings if finding.severity != "note"] == []
    assert plan.blocked() == []
    assert plan.resolved.template == "model"
    assert plan.resolved.device == "cpu" and plan.resolved.compute_dtype == "fp32"
    assert plan.resolved.sequences == plan.data.report.train.token_rows < 1200
    assert plan.tokens_per_epoch == plan.data.report.train.tokens > 0
    assert plan.memory.fits and plan.memory.where == "ram" and plan.alternatives == []
    assert plan.data.train.is_file() and plan.data.eval is not None and plan.data.eval.is_file()
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_id_follows_recipe_and_data(tiny_model: Path, tmp_path: Path) -> None:
    data = write_chats(tmp_path / "chats.jsonl", 150)
    first = make_plan(chat_recipe(tiny_model, data)).id
    assert make_plan(chat_recipe(tiny_model, data)).id == first
    assert make_plan(chat_recipe(tiny_model, data, training__learning_rate=1e-4)).id != first
    write_chats(data, 151)
    assert make_plan(chat_recipe(tiny_model, data)).id != first


def test_too_few_rows_block_unless_accepted(tiny_model: Path, tmp_path: Path) -> None:
    wanted = chat_recipe(tiny_model, write_chats(tmp_path / "few.jsonl", 20))
    plan = make_plan(wanted)
    assert [finding.id for finding in plan.blocked()] == ["D16"]
    fix = plan.blocked()[0].fix
    assert fix is not None
    assert make_plan(patched(wanted, fix.patch)).blocked() == []


def test_chat_rows_without_a_template(tmp_path: Path) -> None:
    """D09 with a patch, and the plan shows what following it would give."""
    model = build_tiny_model(tmp_path / "base", "llama", chat=False)
    wanted = chat_recipe(model, write_chats(tmp_path / "chats.jsonl", 1200))
    plan = make_plan(wanted)
    assert [finding.id for finding in plan.blocked()] == ["D09"]
    fix = plan.blocked()[0].fix
    assert fix is not None and fix.patch == {"data.template": plan.resolved.template}
    assert plan.origins["data.template"].startswith("planner")
    assert plan.data.report.train.supervised_tokens > 0
    assert prepare(plan.data_recipe(), model).digest == plan.data.digest
    followed = make_plan(patched(wanted, fix.patch))
    assert followed.blocked() == [] and followed.resolved.template == plan.resolved.template


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("config.json", {"model_type": "olmo2"}, "model_type 'olmo2'"),
        ("config.json", {"hidden_act": "gelu"}, "gelu"),
        ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece"),
    ],
)
def test_gguf_that_cannot_be_written_blocks_before_training(
    tmp_path: Path, tiny_model: Path, file: str, change: dict[str, Any], reason: str
) -> None:
    """The fix drops the GGUF and nothing else; without GGUF such a model is fine."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    data = write_chats(tmp_path / "chats.jsonl", 1200)
    wanted = chat_recipe(model, data, export__gguf=["q8_0"], export__merged=True)
    assert make_plan(wanted).blocked() == []
    values = json.loads((model / file).read_text()) | change
    (model / file).write_text(json.dumps(values))
    refusal = gguf_refusal(wanted, read_model_facts(model), True)
    assert refusal is not None and reason in refusal.message
    if file == "tokenizer.json":
        return  # no rows can be tokenised with it here
    plan = make_plan(wanted)
    assert [finding.id for finding in plan.blocked()] == ["X04"]
    fix = plan.blocked()[0].fix
    assert fix is not None
    followed = patched(wanted, fix.patch)
    assert make_plan(followed).blocked() == [] and followed.export.merged


# What is wrong -> the recipe's patch, the finding it must give. Each fix is followed and must end it.
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "all answers cut away": ({"model.max_length": 8}, "D02"),
    "longer than the model": ({"model.max_length": 100_000}, "D04"),
    "held-out rows in train": ({"data.eval": "chats.jsonl"}, "D12"),
    "a template of another family": ({"data.template": "chatml"}, "D13"),
    "too few rows": ({"data.max_rows": 60}, "D16"),
    "unknown target modules": ({"adapter.target_modules": ["query_key_value"]}, "L09"),
    "unknown modules to save": ({"adapter.modules_to_save": ["wte"]}, "L09"),
    "fp16 on a CPU": ({"training.precision": "fp16"}, "L06"),
    "micro-batches that do not fit": ({"training.batch_size": 200_000, "adapter.kind": "dora"}, "L11"),
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_following_a_fix_ends_the_finding(
    wrong: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, id = BROKEN[wrong]
    small = machine(ram_gib=16)
    write_chats(tmp_path / "chats.jsonl", 1200)
    monkeypatch.chdir(tmp_path)
    healthy = chat_recipe(tiny_model, Path("chats.jsonl"))
    assert [one for one in make_plan(healthy, machine=small).findings if one.severity != "note"] == []
    broken = patched(healthy, patch)
    finding = next(one for one in make_plan(broken, machine=small).findings if one.id == id)
    assert finding.fix is not None and finding.fix.patch
    mended = patched(broken, finding.fix.patch)
    left = {one.id for one in make_plan(mended, machine=small).findings if one.severity != "note"}
    assert left - set(mended.accept) == set()


def test_a_template_fits_when_its_markers_are_in_the_vocabulary(tmp_path: Path, tiny_model: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    renamed = {"<|user|>": "<|im_start|>", "<|turn_end|>": "<|im_end|>"}
    for entry in tokenizer["added_tokens"]:
        entry["content"] = renamed.get(entry["content"], entry["content"])
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {renamed.get(token, token): id for token, id in vocabulary.items()}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))

    plan = make_plan(chat_recipe(model, write_chats(tmp_path / "chats.jsonl", 1200)))
    assert [finding.id for finding in plan.blocked()] == ["D09"]
    assert plan.resolved.template == "chatml"


def test_rows_are_cut_at_the_models_positions(tiny_model: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "x y " * 900}]
    long = {"messages": turns}
    data = write_chats(tmp_path / "chats.jsonl", 1200)
    data.write_text(data.read_text() + json.dumps(long) + "\n")
    plan = make_plan(chat_recipe(tiny_model, data))
    assert plan.resolved.max_length == 512 == plan.data.report.max_length  # the recipe's default is 2048
    assert plan.resolved.longest == 512
    assert prepare(plan.data_recipe(), tiny_model).digest == plan.data.digest
    assert plan.data.report.train.truncated_rows == 1
    assert plan.origins["model.max_length"].startswith("planner")


def test_packing_plans_the_packed_count(tiny_model: Path, tmp_path: Path) -> None:
    data = write_chats(tmp_path / "chats.jsonl", 1200)
    rows = make_plan(chat_recipe(tiny_model, data))
    packed = make_plan(chat_recipe(tiny_model, data, method__packing=True, model__max_length=256))
    fewest = packed.tokens_per_epoch / 256
    assert fewest <= packed.resolved.sequences < 1.3 * fewest
    assert packed.resolved.steps_per_epoch < rows.resolved.steps_per_epoch


# -- resolving ----------------------------------------------------------------------------------------------


@pytest.fixture
def llama_8b(tmp_path: Path) -> ModelFacts:
    return model_facts(tmp_path / "llama")


def resolved(wanted: Recipe, facts: ModelFacts, on: Machine | None = None, rows: int = 1000) -> Resolved:
    return resolve(wanted, facts, on or machine(gpu()), report(), rows)[0]


@pytest.mark.parametrize(
    "rows, patch, per_epoch, total, warmup",
    [
        (1000, {}, 125, 125, 5),
        (1001, {}, 126, 126, 5),  # the last step is partial
        (9, {"training__batch_size": 2}, 2, 2, 1),  # warm-up: at most half
        (1000, {"training__epochs": 2.5}, 125, 313, 5),
        (1000, {"training__max_steps": 30}, 125, 30, 5),
        (1000, {"training__warmup": 0.1}, 125, 125, 13),
        (1000, {"training__warmup": 0}, 125, 125, 0),
        (1000, {"training__warmup": 100, "training__max_steps": 60}, 125, 60, 60),  # asked for, so kept
    ],
)
def test_steps(
    rows: int, patch: dict[str, Any], per_epoch: int, total: int, warmup: int, llama_8b: ModelFacts
) -> None:
    steps = resolved(recipe(**patch), llama_8b, rows=rows)
    assert (steps.steps_per_epoch, steps.total_steps, steps.warmup_steps) == (per_epoch, total, warmup)
    assert steps.epochs == pytest.approx(total / per_epoch, abs=1e-4)


def test_saves_and_evaluations(llama_8b: ModelFacts) -> None:
    steps = resolved(recipe(), llama_8b)
    assert (steps.total_steps, steps.save_every, steps.eval_every) == (125, 13, None)
    held_out = report(eval=report().train)
    with_eval = resolve(recipe(), llama_8b, machine(gpu()), held_out, 1000)[0]
    assert with_eval.eval_every == 25
    asked = recipe(training__save_every=7, eval__every=9)
    steps = resolve(asked, llama_8b, machine(gpu()), held_out, 1000)[0]
    assert (steps.save_every, steps.eval_every) == (7, 9)


@pytest.mark.parametrize(
    "gpus, patch, compute, base",
    [
        ([gpu()], {}, "bf16", "bf16"),
        ([gpu(capability=(7, 5))], {}, "fp16", "fp16"),
        ([], {}, "fp32", "fp32"),
        ([gpu()], {"model__precision": "nf4"}, "bf16", "nf4"),
        ([gpu()], {"adapter__kind": "none"}, "bf16", "fp32"),
        ([gpu()], {"adapter__kind": "none", "model__precision": "bf16"}, "bf16", "fp32"),
        ([gpu()], {"training__precision": "fp32"}, "fp32", "fp32"),
    ],
)
def test_precision_by_hardware(
    gpus: list[Any], patch: dict[str, Any], compute: str, base: str, llama_8b: ModelFacts
) -> None:
    found = resolved(recipe(**patch), llama_8b, machine(*gpus))
    assert (found.compute_dtype, found.base_precision) == (compute, base)


def test_a_quantised_checkpoint_stays_as_it_is(tmp_path: Path) -> None:
    quantised = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}
    facts = model_facts(tmp_path, LLAMA_8B | {"quantization_config": quantised})
    found, why = resolve(recipe(model__precision="bf16"), facts, machine(gpu()), report(), 1000)
    assert found.base_precision == "nf4" and "checkpoint" in why["model.precision"]


def test_optimizer_falls_back_only_without_bitsandbytes(llama_8b: ModelFacts) -> None:
    cpu = machine()
    assert resolved(recipe(), llama_8b, cpu).optimizer == "adamw_8bit"
    versions = {name: version for name, version in cpu.versions.items() if name != "bitsandbytes"}
    found, why = resolve(recipe(), llama_8b, machine(versions=versions), report(), 1000)
    assert found.optimizer == "adamw" and "bitsandbytes" in why["training.optimizer"]


def test_bitsandbytes_has_an_8bit_step_on_cpu() -> None:
    """What the planner relies on: no fallback is needed on a CPU."""
    import torch
    from bitsandbytes.optim import AdamW8bit

    weight = torch.nn.Parameter(torch.ones(128, 128))
    optimizer = AdamW8bit([weight], lr=0.1)
    weight.square().sum().backward()
    optimizer.step()
    assert optimizer.state[weight]["state1"].dtype == torch.uint8
    assert torch.all(weight < 1)


def test_origins(llama_8b: ModelFacts) -> None:
    values = {
        "model": {"name": "x/y"},
        "data": {"train": "chats.jsonl"},
        "training": {"epochs": 2, "learning_rate": 1e-4, "batch_size": 2},
    }
    origins = recipe_origins(build(values), ["training.learning_rate=1e-4"])
    assert origins["training.learning_rate"] == "override"
    assert origins["training.epochs"] == "recipe"
    assert origins["training.batch_size"] == "recipe"  # set, though to the default's value
    assert origins["adapter.rank"] == "default"
    assert set(RECIPE_KEYS.values()) <= set(origins)
    assert set(RECIPE_KEYS) <= set(Resolved.model_fields)


def test_threads_are_the_usable_cores(llama_8b: ModelFacts) -> None:
    assert resolved(recipe(), llama_8b, machine(cpu_count=3)).threads == 3
    assert resolved(recipe(training__threads=1), llama_8b, machine(cpu_count=3)).threads == 1


# -- time, disk, lightness -----------------------------------------------------------------------------------


def test_time_is_known_after_a_run(tiny_model: Path, tmp_path: Path) -> None:
    wanted = chat_recipe(tiny_model, write_chats(tmp_path / "chats.jsonl", 1200))
    plan = make_plan(wanted)
    assert plan.seconds is None
    record_rate(plan.model, plan.resolved, 500.0)
    again = make_plan(wanted)
    assert again.seconds == pytest.approx(again.total_tokens / 500.0, abs=0.1)
    assert make_plan(patched(wanted, {"training.batch_size": 4})).seconds is None
    record_rate(plan.model, plan.resolved, 250.0)
    assert known_rate(plan.model, plan.resolved) == 250.0


def test_disk_follows_what_is_asked(tiny_model: Path, tmp_path: Path) -> None:
    plain = plan_for(tiny_model, tmp_path, 80)
    assert plain.disk_bytes["merged"] == plain.disk_bytes["gguf"] == 0
    exported = plan_for(tiny_model, tmp_path, 80, export__gguf=["q4_k_m"])
    total = exported.model.parameters.total
    assert exported.disk_bytes["merged"] == 2 * total
    assert 2.5 * total < exported.disk_bytes["gguf"] < 2.7 * total  # the 16-bit source and 4.9 bits a weight


def test_planning_a_local_model_loads_nothing_heavy(tiny_model: Path, tmp_path: Path) -> None:
    data = write_chats(tmp_path / "chats.jsonl", 300)
    code = f"""
import sys, time
start = time.process_time()
from whet.engine.plan import make_plan
from whet.engine.recipe_files import build
recipe = build({{"model": {{"name": {str(tiny_model)!r}}}, "data": {{"train": {str(data)!r}}},
                "method": {{"packing": True}}, "export": {{"gguf": ["q8_0"]}}}})
plan = make_plan(recipe)
heavy = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "huggingface_hub", "llama_cpp")
print(plan.id, [name for name in heavy if name in sys.modules], time.process_time() - start < 3)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1)[1].strip() == "[] True"
