"""Whisper on a GPU: features without waiting for it, and steps as CUDA graphs against eager ones.

Run by hand: `PYTHONPATH=src:tests python -P -m pytest -q -m gpu tests/gpu/test_gpu_speech.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.live_runs import attempt
from support.tiny_runs import create_run, events_of
from support.tiny_whisper import build_tiny_whisper, write_words
from transformers import WhisperFeatureExtractor

from whet.engine.data.audio import samples_of
from whet.engine.methods.speech.features import SoundFeatures
from whet.engine.methods.speech.job import SpeechTraining
from whet.engine.recipe import Recipe
from whet.engine.runs.events import FAST_PATH, PhaseEvent, StepEvent

pytestmark = pytest.mark.gpu

STEPS = 12


@pytest.mark.parametrize("mels", [80, 128])
def test_features_are_the_extractors_and_need_no_wait(mels: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=mels)
    draw = np.random.default_rng(0)
    rows = [
        {"audio": draw.normal(scale=3000, size=int(16000 * seconds)).astype("<i2").tobytes()}
        for seconds in (30, 11.5, 0.4)
    ]
    features = SoundFeatures(extractor, torch.device("cuda"))
    sounds = features.sounds(rows)
    assert sounds.is_pinned()
    features(sounds)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = features(sounds)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    theirs = extractor([samples_of(row["audio"]) for row in rows], sampling_rate=16000, return_tensors="pt")[
        "input_features"
    ]
    torch.testing.assert_close(found.cpu(), theirs, rtol=0, atol=1e-3)


def recipe(model: Path, rows: Path, held_out: float) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": str(model), "max_length": 32},
            "data": {"train": str(rows), "eval_fraction": held_out},
            "method": {"kind": "speech", "language": "en"},
            "adapter": {"rank": 8, "alpha": 16},
            "eval": {"every": 5, "batch_size": 4},
            "training": {
                "max_steps": STEPS, "batch_size": 8, "gradient_accumulation": 2, "learning_rate": 1e-3,
                "optimizer": "adamw", "save_every": STEPS, "warmup": 0, "scheduler": "constant",
            },
        }
    )  # fmt: skip


def steps(wanted: Recipe, change: Callable[[Any], None]) -> tuple[Any, list[float], torch.Tensor, str]:
    """A run's trainer, its losses, its trained weights, and what it said of the fast path; ``change`` is done
    to the trainer before it trains."""
    made: list[SpeechTraining] = []

    def method(context: Any) -> Any:
        made.append(SpeechTraining(context))
        trainer: Any = made[-1].trainer
        assert trainer.plain_reason is None and trainer.graph_reason is None, trainer.graph_reason
        change(trainer)
        return made[-1]

    run = create_run(wanted)
    assert attempt(run, method=method) == "finished"
    trainer: Any = made[0].trainer
    weights = [p.detach().float().flatten() for p in trainer.model.parameters() if p.requires_grad]
    events = list(events_of(run))
    losses = [event.loss for event in events if isinstance(event, StepEvent)]
    said = [event.detail for event in events if isinstance(event, PhaseEvent)]
    report = next(detail for detail in said if detail.startswith(FAST_PATH))
    return trainer, losses, torch.cat(weights), report.removeprefix(FAST_PATH)


def eagerly(trainer: Any) -> None:
    trainer.graphed.stopped, trainer._stop_said = "the test", True


def plainly(trainer: Any) -> None:
    trainer.plain_reason = "the test"


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_graphs_change_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: float) -> None:
    """Every epoch ends in a batch of six rows. At each look at held-out rows graphs are let go of."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    count = 38 if held_out == 0 else 40
    model, rows = build_tiny_whisper(tmp_path / "model"), write_words(tmp_path / "rows", count)
    wanted = recipe(model, rows, held_out)
    trainer, losses, weights, report = steps(wanted, lambda trainer: None)
    assert trainer.graphed.stopped is None, trainer.graphed.stopped
    assert report == "graphs 1/1"
    if held_out == 0:  # else the last evaluation let go of them
        assert [shape[2] for shape in trainer.graphed.graphs] == [(8, trainer.filling.tokens)]
    again, eager, other, _ = steps(wanted, eagerly)
    assert not again.graphed.graphs
    assert len(losses) == len(eager) == STEPS and all(math.isfinite(loss) for loss in losses)
    # Attention may add up in another order from one pass to the next.
    np.testing.assert_allclose(losses, eager, rtol=1e-2)
    assert float((weights - other).norm() / other.norm()) < 2e-2


def test_filled_steps_have_the_losses_of_transformers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    model, rows = build_tiny_whisper(tmp_path / "model"), write_words(tmp_path / "rows", 40)
    wanted = recipe(model, rows, 0.25)
    _, losses, _, _ = steps(wanted, lambda trainer: None)
    _, plain, _, _ = steps(wanted, plainly)
    np.testing.assert_allclose(losses[:4], plain[:4], rtol=5e-2)
