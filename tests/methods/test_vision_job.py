"""Models that see as runs: they learn what a picture shows, go on where they stopped, and load plainly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.live_runs import attempt, findings_of
from support.tiny_runs import create_run, events_of, next_attempt, tiny_recipe
from support.tiny_vision import SEEING, build_seeing, colour_rows
from torch import nn
from transformers import AutoModelForImageTextToText, AutoTokenizer

from whet.engine.errors import WhetError
from whet.engine.export.of_run import export_run
from whet.engine.methods.vision.inputs import seen_by
from whet.engine.methods.vision.job import VisionTraining
from whet.engine.methods.vision.loading import load_seeing
from whet.engine.models.loading import Precision
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.events import EvalEvent, SampleEvent, StepEvent
from whet.engine.runs.store import RunDir


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


def finished(wanted: Recipe) -> RunDir:
    run = create_run(wanted)
    assert attempt(run, method=VisionTraining) == "finished"
    return run


def steps(run: RunDir) -> dict[int, float]:
    return {event.step: event.loss for event in events_of(run) if isinstance(event, StepEvent)}


def test_it_learns_what_only_the_picture_tells_and_leaves_merged(folder: Path) -> None:
    """The question is always the same: a model that ignores its images is right half of the time."""
    pictures = [f"![]({folder / 'rows' / name}) Which one?" for name in ("0.png", "1.png")]
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
    result = export_run(next_attempt(run))
    assert result.status == "pass" and result.verdicts[0].proofs[0].name == "merge"
    merged = AutoModelForImageTextToText.from_pretrained(result.paths["merged"], dtype=torch.float32).eval()
    assert (result.paths["merged"] / "preprocessor_config.json").is_file()
    same_logits(run, folder, merged)


def same_logits(run: RunDir, folder: Path, other: nn.Module, **close: float) -> None:
    """Those of the run's model, with the adapter it wrote, and of another, on a row with its picture."""
    training = VisionTraining(next_attempt(run))
    training.trainer.load_weights(run.export / "adapter")
    batch = training.trainer.data_collator([training.trainer.train_dataset[0]])
    own = training.seeing.handle.model.eval()
    tolerance = {"atol": 0.06, "rtol": 0.06} if not close else close
    with torch.no_grad():
        wanted = own(**batch).logits
        torch.testing.assert_close(other(**batch).logits, wanted, **tolerance)
        with own.disable_adapter():
            assert not torch.allclose(own(**batch).logits, wanted, atol=1e-3)


@pytest.mark.parametrize("name", SEEING)
def test_every_family_trains_and_plain_peft_loads_the_result(folder: Path, name: str) -> None:
    run = finished(recipe(folder, name))
    seen = [event for event in events_of(run) if isinstance(event, StepEvent)]
    assert len(seen) == 2 and all(step.grad_norm > 0 and step.supervised_tokens > 0 for step in seen)
    assert seen[1].loss < seen[0].loss
    assert not [finding.title for finding in findings_of(run) if finding.id in ("E08", "L01", "L03", "L09")]
    base = AutoModelForImageTextToText.from_pretrained(folder / name)
    loaded = PeftModel.from_pretrained(base, run.export / "adapter").eval()
    same_logits(run, folder, loaded, atol=1e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(run.export / "adapter")
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(folder / name))
    plan = run.load_plan()
    trained = sum(p.numel() for p in loaded.parameters() if "lora" in str(p)) or None
    assert plan.data.report.images is not None and plan.data.report.images.images == 16
    assert trained is None or plan.resolved.trainable_parameters >= trained


SWITCHES = [
    ("finetune_vision_layers", "vision"),
    ("finetune_language_layers", "language"),
    ("finetune_attention_modules", "attention"),
    ("finetune_mlp_modules", "mlp"),
]


def test_a_stopped_run_goes_on_where_it_was(folder: Path) -> None:
    wanted = recipe(folder, "gemma3", adapter={"dropout": 0.1}, training={"max_steps": 5})
    whole = steps(finished(wanted))
    run = create_run(wanted)
    assert attempt(run, stop_after=2, method=VisionTraining) == "stopped"
    assert attempt(run, method=VisionTraining) == "finished"
    assert steps(run) == whole
