"""The job from a plan to trained weights: it learns, stops, resumes, and ends in errors that say so."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, events_of, next_attempt, tiny_recipe, write_chat_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from whet.engine.errors import WhetError
from whet.engine.methods.sft.arguments import training_arguments
from whet.engine.methods.sft.job import train
from whet.engine.plan import make_plan
from whet.engine.runs.context import RunContext, Stopped
from whet.engine.runs.events import CheckpointEvent, EvalEvent, Event, FindingEvent, SampleEvent, StepEvent
from whet.engine.runs.store import RunDir


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_chat_rows(tmp_path / "rows.jsonl", 24)


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    return write_chat_rows(tmp_path / "held_out.jsonl", 6, seed=1)


def of(run: RunDir, kind: type[Any]) -> list[Any]:
    return [event for event in events_of(run) if isinstance(event, kind)]


def checkpoints(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


class Asking(RunContext):
    """Asks for something once a step was seen."""

    def ask(self, step: int, what: str) -> Asking:
        self.at, self.what = step, what
        return self

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, StepEvent) and event.step == self.at:
            if self.what == "checkpoint":
                self.dir.control.request_checkpoint()
            else:
                self.signals = {"stop": 1, "stop now": 2}[self.what]


class BestSoFar(RunContext):
    """Remembers which checkpoint the run's state called the best after each checkpoint."""

    told: dict[int, str]

    @classmethod
    def of(cls, run: RunDir) -> BestSoFar:
        context = next_attempt(run)
        best = cls(run, context.attempt, context._events)
        best.told = {}
        return best

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, CheckpointEvent):
            named = self.dir.read_state().best_checkpoint
            if named is not None:
                self.told[event.step] = Path(named).name


def asking(run: RunDir, step: int, what: str) -> Asking:
    context = next_attempt(run)
    return Asking(run, context.attempt, context._events).ask(step, what)


def test_it_learns_and_writes_what_peft_reads(model: Path, rows: Path) -> None:
    recipe = tiny_recipe(
        model,
        rows,
        data={"eval": str(rows)},
        adapter={"rank": 16, "alpha": 16, "dropout": 0.0},
        training={"max_steps": 40, "learning_rate": 2e-2, "save_every": 40},
        eval={"every": 20},
        sampling={"prompts": ["what is a token?"], "max_new_tokens": 6},
    )
    run = create_run(recipe)
    context = next_attempt(run)
    adapter = train(context)
    evals = of(run, EvalEvent)
    assert [event.step for event in evals] == [0, 20, 40]
    assert evals[-1].loss < evals[0].loss - 0.7
    assert [event.step for event in of(run, SampleEvent)] == [0, 20, 40]
    steps = of(run, StepEvent)
    assert [event.step for event in steps] == list(range(1, 41))
    assert all(event.grad_norm > 0 and event.tokens > event.supervised_tokens > 0 for event in steps)
    assert context.summary["best_step"] == 40
    # The adapter as anybody would load it gives the loss that the last evaluation saw.
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    assert loss_of(loaded, tokenizer, rows) == pytest.approx(evals[-1].loss, rel=1e-4)


def loss_of(model: Any, tokenizer: Any, rows: Path) -> float:
    """Mean loss over the assistants' text and end of turn, from the template's text alone."""
    total, count = 0.0, 0
    for line in rows.read_text().splitlines():
        turns = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        supervised = tokenizer.encode(turns[1]["content"] + "<|turn_end|>", add_special_tokens=False)
        with torch.no_grad():
            logits = model(torch.tensor([ids + supervised])).logits[0, len(ids) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(supervised), reduction="sum"))
        count += len(supervised)
    return total / count


@pytest.mark.parametrize(
    ("sections", "folder"),
    [
        ({"adapter": {"kind": "dora", "modules_to_save": ["lm_head"]}}, "adapter"),
        ({"model": {"precision": "nf4"}, "training": {"optimizer": "adamw_8bit"}}, "adapter"),
        ({"model": {"precision": "int8"}, "training": {"gradient_checkpointing": "on"}}, "adapter"),
        ({"adapter": {"target_modules": "all-linear", "bias": "all"}}, "adapter"),
        ({"adapter": {"kind": "none"}, "training": {"scheduler": "cosine_with_min_lr"}}, "model"),
        ({"training": {"precision": "bf16", "max_grad_norm": 0, "warmup": 0.5}}, "adapter"),
    ],
    ids=["dora", "nf4", "int8", "all-linear", "full", "bf16"],
)
def test_ways_to_train(model: Path, rows: Path, sections: dict[str, Any], folder: str) -> None:
    training = {"max_steps": 12, "learning_rate": 5e-3, "save_every": 12, "warmup": 0}
    run = create_run(
        tiny_recipe(model, rows, **sections | {"training": training | sections.get("training", {})})
    )
    context = next_attempt(run)
    assert train(context) == run.export / folder
    losses = [event.loss for event in of(run, StepEvent)]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.1
    assert (run.export / folder / "tokenizer.json").is_file()
    assert not list((run.export / folder).glob("*.bin"))


def test_trained_weights_are_held_in_fp32_on_a_quantised_base(model: Path, rows: Path) -> None:
    from safetensors.torch import load_file

    run = create_run(tiny_recipe(model, rows, model={"precision": "nf4"}))
    train(next_attempt(run))
    for folder in (run.export / "adapter", run.checkpoints / "step-000006"):
        weights = load_file(folder / "adapter_model.safetensors")
        assert weights and {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_evaluating_does_not_change_the_training(model: Path, rows: Path, held_out: Path) -> None:
    looked = create_run(tiny_recipe(model, rows, data={"eval": str(held_out)}, eval={"every": 1}))
    blind = create_run(tiny_recipe(model, rows))
    for run in (looked, blind):
        train(next_attempt(run))
    assert [e.loss for e in of(looked, StepEvent)] == [e.loss for e in of(blind, StepEvent)]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"adapter": {"kind": "dora", "modules_to_save": ["lm_head"]}},
        {"adapter": {"kind": "none"}},
        {"model": {"precision": "nf4"}, "training": {"optimizer": "adamw_8bit"}},
    ],
    ids=["lora", "dora", "full", "nf4"],
)
def test_stop_finishes_the_step_saves_and_resumes(model: Path, rows: Path, sections: dict[str, Any]) -> None:
    training = {"save_every": 100} | sections.get("training", {})
    recipe = tiny_recipe(model, rows, **sections | {"training": training})
    run, whole = create_run(recipe), create_run(recipe)
    with pytest.raises(Stopped):
        train(asking(run, 3, "stop"))
    assert [event.step for event in of(run, StepEvent)] == [1, 2, 3]
    assert checkpoints(run) == ["step-000003"]
    assert not (run.export / "adapter").exists()
    train(next_attempt(run))
    train(next_attempt(whole))
    assert [e.loss for e in of(run, StepEvent)] == [e.loss for e in of(whole, StepEvent)]


def test_stop_now_ends_without_a_checkpoint(model: Path, rows: Path) -> None:
    run = create_run(tiny_recipe(model, rows, training={"save_every": 100}))
    with pytest.raises(Stopped):
        train(asking(run, 3, "stop now"))
    assert [event.step for event in of(run, StepEvent)] == [1, 2, 3]
    assert checkpoints(run) == []


def test_a_checkpoint_on_request(model: Path, rows: Path) -> None:
    run = create_run(tiny_recipe(model, rows, training={"save_every": 100}))
    train(asking(run, 2, "checkpoint"))
    assert [event.step for event in of(run, CheckpointEvent)] == [2, 6]


def test_finished_weights_are_not_trained_twice(model: Path, rows: Path) -> None:
    run = create_run(tiny_recipe(model, rows))
    train(next_attempt(run))
    seen = len(of(run, StepEvent))
    weights = (run.export / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    train(next_attempt(run))
    assert len(of(run, StepEvent)) == seen
    assert (run.export / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == weights


def test_an_attempt_at_the_export_alone_knows_what_training_measured(model: Path, rows: Path) -> None:
    """The first attempt trained and died before its export was done."""
    run = create_run(tiny_recipe(model, rows))
    train(next_attempt(run))
    second = next_attempt(run)
    train(second)
    assert second.summary["steps"] == run.load_plan().resolved.total_steps


def test_early_stopping_keeps_the_best_weights(model: Path, rows: Path, held_out: Path) -> None:
    """A learning rate that first helps and then hurts on held-out rows."""
    recipe = tiny_recipe(
        model,
        rows,
        data={"eval": str(held_out)},
        training={"max_steps": 200, "learning_rate": 3e-2, "save_every": 3, "keep_checkpoints": 1},
        eval={"every": 4, "early_stopping": 2},
        sampling={"prompts": ["what is a token?"], "max_new_tokens": 64, "temperature": 2.0},
    )
    run = create_run(recipe)
    context = BestSoFar.of(run)
    adapter = train(context)
    evals = of(run, EvalEvent)[1:]
    best = min(evals, key=lambda event: event.loss)
    assert evals[-1].step == best.step + 8 < 200
    assert [event.step for event in evals if event.best][-1] == best.step
    assert context.summary["best_step"] == best.step and context.summary["early_stopped"]
    assert f"step-{best.step:06d}" in checkpoints(run)
    # It was known all along, not only at the end.
    assert context.told == {
        event.step: f"step-{max(e.step for e in evals if e.best and e.step <= event.step):06d}"
        for event in of(run, CheckpointEvent)
        if event.step >= 4
    }
    assert run.read_state().best_checkpoint == str(run.checkpoints / f"step-{best.step:06d}")
    said = {event.step: event.answer for event in of(run, SampleEvent)[:-1]}
    last = of(run, SampleEvent)[-1]
    assert (last.step, last.answer) == (best.step, said[best.step])
    assert said[evals[-1].step] != last.answer
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    assert loss_of(loaded, AutoTokenizer.from_pretrained(model), held_out) == pytest.approx(
        best.loss, rel=1e-4
    )


def test_nan_names_the_step_and_keeps_the_checkpoints(model: Path, rows: Path) -> None:
    recipe = tiny_recipe(
        model,
        rows,
        adapter={"dropout": 0.0},
        training={"learning_rate": 1e15, "save_every": 1, "warmup": 2, "max_grad_norm": 0},
    )
    run = create_run(recipe)
    with pytest.raises(WhetError) as caught:
        train(next_attempt(run))
    assert caught.value.code == "train.not_finite"
    steps = of(run, StepEvent)
    assert f"step {steps[-1].step + 1} is" in caught.value.message
    assert checkpoints(run)[-1] == f"step-{steps[-1].step:06d}"


def test_a_lost_data_file_is_not_missed_while_its_tokens_are_there(model: Path, rows: Path) -> None:
    recipe = tiny_recipe(model, rows)
    run, whole = create_run(recipe), create_run(recipe)
    with pytest.raises(Stopped):
        train(asking(run, 3, "stop"))
    rows.unlink()
    train(next_attempt(run))
    train(next_attempt(whole))
    assert [e.loss for e in of(run, StepEvent)] == [e.loss for e in of(whole, StepEvent)]


def test_lost_tokens_are_made_again_from_the_same_rows_only(model: Path, rows: Path) -> None:
    recipe = tiny_recipe(model, rows, training={"save_every": 2, "max_steps": 4})
    run = create_run(recipe)
    tokens = run.load_plan().data.dir
    with pytest.raises(Stopped):
        train(asking(run, 3, "stop"))
    kept = checkpoints(run)
    shutil.rmtree(tokens)
    away = rows.rename(rows.with_suffix(".away"))
    with pytest.raises(WhetError) as lost:
        train(next_attempt(run))
    assert lost.value.code == "data.not_found" and rows.name in lost.value.message
    write_chat_rows(rows, 25, seed=9)
    with pytest.raises(WhetError) as changed:
        train(next_attempt(run))
    assert changed.value.code == "data.changed"
    assert checkpoints(run) == kept == ["step-000002", "step-000003"]
    away.replace(rows)
    train(next_attempt(run))
    assert [event.step for event in of(run, StepEvent)] == [1, 2, 3, 4]


def test_a_template_by_name_travels_with_the_adapter(model: Path, rows: Path) -> None:
    run = create_run(tiny_recipe(model, rows, data={"template": "zephyr"}))
    tokenizer = AutoTokenizer.from_pretrained(train(next_attempt(run)))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert "<|user|>\nhello" in text
    assert "generation" not in tokenizer.chat_template.replace("add_generation_prompt", "")


def test_the_next_plan_of_the_same_work_knows_the_time(model: Path, rows: Path) -> None:
    recipe = tiny_recipe(model, rows)
    run = create_run(recipe)
    assert run.load_plan().seconds is None
    train(next_attempt(run))
    steps = of(run, StepEvent)[1:]  # the first warms up
    measured = sum(event.tokens for event in steps) / sum(event.seconds for event in steps)
    again = make_plan(recipe)
    assert again.seconds == pytest.approx(again.total_tokens / measured, rel=0.01, abs=0.1)


def test_the_configuration_uses_no_deprecated_name(tmp_path: Path, model: Path, rows: Path) -> None:
    plan = make_plan(tiny_recipe(model, rows, training={"gradient_checkpointing": "on"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        args = training_arguments(plan.recipe, plan.resolved, tmp_path, "adamw")
    assert args.gradient_checkpointing and args.gradient_checkpointing_kwargs == {"use_reentrant": False}


@pytest.mark.parametrize("packing", [False, True])
def test_where_steps_cannot_run_fused_they_run_as_trls(
    model: Path, rows: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    """Padded batches through the model's own forward pass give the same losses, and the run says so."""
    adapter = {"rank": 4, "alpha": 8, "dropout": 0.0}
    sections: dict[str, Any] = {"adapter": adapter, "method": {"packing": packing}}
    sections["data"] = {"eval": str(held_out)}
    runs = []
    for reason in (None, "a loss of its own"):
        if reason is not None:
            monkeypatch.setattr("whet.engine.methods.sft.trainer.plain_reason", partial(_said, reason))
        run = create_run(tiny_recipe(model, rows, **sections))
        train(next_attempt(run))
        runs.append(run)
    fast, plain = ([e.loss for e in events_of(run) if isinstance(e, StepEvent | EvalEvent)] for run in runs)
    assert plain == pytest.approx(fast, rel=1e-4)
    found = [[event.finding for event in of(run, FindingEvent)] for run in runs]
    assert "L08" not in {finding.id for finding in found[0]}
    assert "steps: a loss of its own" in str(next(f for f in found[1] if f.id == "L08").evidence)


def _said(reason: str, *_: Any) -> str:
    return reason
