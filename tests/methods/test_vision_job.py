"""Models that see as runs: they learn what a picture shows, go on where they stopped, and load plainly."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from support.live_runs import attempt, findings_of
from support.tiny_runs import create_run, events_of, next_attempt, tiny_recipe
from support.tiny_vision import SEEING, build_seeing, colour_rows
from torch import nn
from transformers import AutoModelForImageTextToText, AutoTokenizer

from whet.engine.export.of_run import export_run
from whet.engine.export.seeing_merge import compare
from whet.engine.methods.jobs import run_job
from whet.engine.methods.vision.job import VisionTraining
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.context import RunContext
from whet.engine.runs.events import EvalEvent, SampleEvent, StepEvent
from whet.engine.runs.jobs import EvaluateJob
from whet.engine.runs.store import RunDir, RunStore
from whet.tui.render.plan import plan_facts


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("seeing")
    for name in SEEING:
        build_seeing(made / name, name)
    colour_rows(made / "rows")
    return made


def recipe(folder: Path, name: str = "qwen2_5_vl", **sections: Any) -> Recipe:
    """Colours, two rows a micro-batch."""
    defaults: dict[str, dict[str, Any]] = {
        "method": {"kind": "vision", "image_min": 28, "image_max": 64},
        "adapter": {"rank": 8, "alpha": 16},
        "training": {"max_steps": 2, "warmup": 0, "scheduler": "constant"},
    }
    for section, values in sections.items():
        defaults[section] = defaults.get(section, {}) | values
    return tiny_recipe(folder / name, folder / "rows" / "colours.jsonl", **defaults)


def export(shown: Any) -> str:
    """What a renderable looks like on a wide terminal."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def finished(wanted: Recipe) -> RunDir:
    run = create_run(wanted)
    assert attempt(run, method=VisionTraining) == "finished"
    return run


def steps(run: RunDir) -> dict[int, float]:
    return {event.step: event.loss for event in events_of(run) if isinstance(event, StepEvent)}


def test_pictures_that_are_read_ahead_count_as_time_of_rows(folder: Path) -> None:
    """A check asks whether a run waits for its rows."""
    made: list[VisionTraining] = []

    def method(context: RunContext) -> VisionTraining:
        made.append(VisionTraining(context))
        return made[0]

    assert attempt(create_run(recipe(folder)), method=method) == "finished"
    trainer = made[0].trainer
    assert trainer.data_seconds >= trainer._ahead.seconds > 0


def test_it_learns_what_only_the_picture_tells_and_leaves_merged(folder: Path) -> None:
    """The question is always the same: a model that ignores its images is right half of the time."""
    pictures = [f"![]({place}) Which one?" for place in (folder / "rows" / "0.png", "1.png")]
    run = finished(
        recipe(
            folder,
            data={"eval_fraction": 0.3},
            training={"max_steps": 24, "batch_size": 4, "learning_rate": 1e-2},
            eval={"every": 24, "batch_size": 8},
            sampling={"prompts": pictures, "max_new_tokens": 4},
            export={"merged": True},
        )
    )
    first, last = [event for event in events_of(run) if isinstance(event, EvalEvent)]
    assert first.metrics["token_accuracy"] < 0.2 and last.loss < first.loss / 2
    assert last.metrics["token_accuracy"] > 0.95
    answers = [event.answer for event in events_of(run) if isinstance(event, SampleEvent)]
    assert answers[-2:] == ["red", "blue"] and answers[:2] != ["red", "blue"]
    assert not [finding.title for finding in findings_of(run) if finding.id == "L09"]
    job = RunStore().create_job(EvaluateJob(parent=run.id, prompts=pictures[:1]), "test")
    context = next_attempt(job)
    run_job(context)
    assert context.summary["tuned_token_accuracy"] == last.metrics["token_accuracy"]
    assert context.summary["base_loss"] == pytest.approx(first.loss, rel=1e-5)
    assert [event.answer for event in events_of(job) if isinstance(event, SampleEvent)][-1] == "red"
    result = export_run(next_attempt(run))
    assert result.status == "pass" and result.verdicts[0].proofs[0].name == "merge"
    merged = AutoModelForImageTextToText.from_pretrained(result.paths["merged"], dtype=torch.float32).eval()
    assert (result.paths["merged"] / "preprocessor_config.json").is_file()
    card = (run.export / "README.md").read_text(encoding="utf-8")
    assert "image-text-to-text" in card and "kind: vision" in card and "![](0.png)" in card
    assert str(folder) not in card
    evidence = result.verdicts[0].proofs[0].evidence
    assert evidence["moved"] > 10 * evidence["largest_difference"]
    same_logits(run, merged, 0.06)


def same_logits(run: RunDir, other: nn.Module, close: float) -> None:
    """Those of the run's model, with the adapter it wrote, and of another, on a row with its picture."""
    training = VisionTraining(next_attempt(run))
    training.trainer.load_weights(run.export / "adapter")
    batch = training.trainer.data_collator([training.trainer.train_dataset[0]])
    own = training.seeing.handle.model.eval()
    with torch.no_grad():
        wanted = own(**batch).logits
        torch.testing.assert_close(other(**batch).logits, wanted, atol=close, rtol=close)
        with own.disable_adapter():
            assert not torch.allclose(own(**batch).logits, wanted, atol=1e-3)


@pytest.mark.parametrize("name", SEEING)
def test_every_family_trains_and_plain_peft_loads_the_result(folder: Path, name: str) -> None:
    run = finished(recipe(folder, name))
    seen = [event for event in events_of(run) if isinstance(event, StepEvent)]
    assert len(seen) == 2 and all(step.grad_norm > 0 and step.supervised_tokens > 0 for step in seen)
    assert seen[1].loss < seen[0].loss
    assert not [finding.title for finding in findings_of(run) if finding.id in ("E08", "L01", "L03", "L09")]
    assert any(one.id == "L08" and "without the fast path" in one.title for one in run.load_plan().findings)
    base = AutoModelForImageTextToText.from_pretrained(folder / name)
    loaded = PeftModel.from_pretrained(base, run.export / "adapter").eval()
    same_logits(run, loaded, 1e-5)
    tokenizer = AutoTokenizer.from_pretrained(run.export / "adapter")
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(folder / name))


def test_parts_train_whole_where_all_weights_do(folder: Path) -> None:
    """The image encoder stays as it was; the whole model loads with plain transformers."""
    method = {"finetune_vision_layers": False}
    run = finished(recipe(folder, adapter={"kind": "none"}, method=method, training={"max_steps": 1}))
    before = AutoModelForImageTextToText.from_pretrained(folder / "qwen2_5_vl").state_dict()
    after = AutoModelForImageTextToText.from_pretrained(run.export / "model").state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved and all("language_model" in name or "lm_head" in name for name in moved)
    assert (run.export / "model" / "preprocessor_config.json").is_file()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": {"finetune_vision_layers": False, "finetune_language_layers": False}}, "nothing would train"),
    ({"method": {"finetune_attention_modules": False, "finetune_mlp_modules": False}}, "nothing would train"),
    ({"method": {"image_min": 500, "image_max": 400}}, r"image_min=500 is above method\.image_max=400"),
    ({"export": {"gguf": ["q8_0"]}}, "mmproj"),
    ({"export": {"fp8": True}}, "not made of such models|mmproj"),
    ({"model": {"precision": "fp8"}}, "does not train on FP8"),
    ({"adapter": {"kind": "none"}, "method": {"finetune_mlp_modules": False}}, "trains all weights"),
    ({"data": {"format": "alpaca"}}, "has no images"),
]


@pytest.mark.parametrize(("sections", "reason"), REFUSED)
def test_what_cannot_be_is_refused_before_training(folder: Path, sections: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        recipe(folder, **sections)


def test_the_plan_counts_images_and_what_trains(folder: Path) -> None:
    plans = {
        name: make_plan(recipe(folder, "qwen2_5_vl", method=method))
        for name, method in (("all", {}), ("text", {"finetune_vision_layers": False}),
                             ("large", {"image_min": 56}))
    }  # fmt: skip
    whole, text, large = (plans[name] for name in ("all", "text", "large"))
    assert whole.data.report.images is not None and whole.data.report.images.rows == 16
    assert whole.tokens_per_epoch < large.tokens_per_epoch
    assert large.memory.components["activations"] > whole.memory.components["activations"]
    assert text.memory.components["activations"] < whole.memory.components["activations"]
    assert text.resolved.trainable_parameters < whole.resolved.trainable_parameters
    said = " ".join(str(export(plan_facts(large))).split())
    assert "16 in 16 rows, up to 1 a row" in said and "16 patches in the largest row" in said
    for name, plan in plans.items():
        training = VisionTraining(next_attempt(create_run(plan.recipe)))
        model = training.seeing.handle.model
        trained = sum(param.numel() for param in model.parameters() if param.requires_grad)
        assert plan.resolved.trainable_parameters == trained, name


def test_an_image_that_changed_ends_the_run_by_name(folder: Path, tmp_path: Path) -> None:
    rows = colour_rows(tmp_path / "rows", 4)
    run = create_run(recipe(folder, data={"train": str(rows)}))
    (tmp_path / "rows" / "0.png").write_bytes((tmp_path / "rows" / "1.png").read_bytes())
    assert attempt(run, method=VisionTraining) == "vision.image"
    for place in ("gone.png", "~nobody-of-that-name/a.png"):
        run = create_run(recipe(folder, sampling={"prompts": [f"![]({place}) Which one?"]}))
        assert attempt(run, method=VisionTraining) == "sampling.image" and not steps(run)


def test_a_stopped_run_goes_on_where_it_was(folder: Path) -> None:
    wanted = recipe(folder, "gemma3", adapter={"dropout": 0.1}, training={"max_steps": 5})
    whole = steps(finished(wanted))
    run = create_run(wanted)
    assert attempt(run, stop_after=2, method=VisionTraining) == "stopped"
    assert attempt(run, method=VisionTraining) == "finished"
    assert steps(run) == whole


def test_a_plan_without_the_weights_says_that_it_guesses(folder: Path, tmp_path: Path) -> None:
    """As of a model on the hub that is not downloaded yet."""
    for file in (folder / "llava").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    wanted = recipe(
        folder, "llava", model={"name": str(tmp_path)}, method={"finetune_language_layers": False}
    )
    plan = make_plan(wanted)
    assert not plan.memory.exact_parameters and plan.memory.components["base"] > 0


def test_a_merge_that_lost_the_training_is_no_pass() -> None:
    before, wanted = [torch.tensor([1.0, -9.0])], [torch.tensor([1.2, -9.0])]
    broken = [torch.tensor([math.nan, -9.0])]
    judge = {"right": wanted, "lost": before, "wrong": [torch.tensor([3.0, -9.0])], "broken": broken}
    said = {name: compare(wanted, found, before, torch.bfloat16).status for name, found in judge.items()}
    assert said == {"right": "pass", "lost": "warn", "wrong": "fail", "broken": "fail"}
    twice = compare(wanted * 2, wanted + broken, before * 2, torch.bfloat16)
    assert twice.status == "fail"
