"""Steps of a Whisper model: features, batches of one shape, graphs, and why there are none."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.live_runs import attempt
from support.tiny_runs import create_run, events_of, next_attempt
from support.tiny_whisper import build_tiny_whisper, write_words
from transformers import WhisperFeatureExtractor
from triton.runtime.errors import OutOfResources

from whet.engine.data.audio import samples_of
from whet.engine.methods import graphed
from whet.engine.methods.graphed import GraphedStep
from whet.engine.methods.speech.batches import Filling, HeardBatch
from whet.engine.methods.speech.features import SoundFeatures, other_features
from whet.engine.methods.speech.job import SpeechTraining
from whet.engine.methods.speech.steps import HearingSteps, fused
from whet.engine.recipe import Recipe
from whet.engine.runs.events import FindingEvent, StepEvent

ROWS, HELD_OUT = 40, 0.25  # thirty to train on: the fourth batch of eight has six


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("whisper")
    return build_tiny_whisper(root / "model"), write_words(root / "rows", ROWS)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


def recipe(files: tuple[Path, Path], **adapter: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": str(files[0]), "max_length": 32},
            "data": {"train": str(files[1]), "eval_fraction": HELD_OUT},
            "method": {"kind": "speech", "language": "en"},
            "adapter": {"rank": 4, "alpha": 8} | adapter,
            "eval": {"every": 4, "batch_size": 4},
            "training": {
                "max_steps": 6, "batch_size": 8, "gradient_accumulation": 2, "learning_rate": 1e-3,
                "optimizer": "adamw", "save_every": 6, "warmup": 0, "threads": 1, "scheduler": "constant",
            },
        }
    )  # fmt: skip


def trained(wanted: Recipe, change: Any) -> tuple[Any, list[float], list[Any]]:
    """A finished run's trainer, its losses and its events; ``change`` is done to the trainer at first."""
    made: list[SpeechTraining] = []

    def method(context: Any) -> Any:
        made.append(SpeechTraining(context))
        change(made[-1].trainer)
        return made[-1]

    run = create_run(wanted)
    assert attempt(run, method=method) == "finished"
    events = list(events_of(run))
    return made[0].trainer, [event.loss for event in events if isinstance(event, StepEvent)], events


def noise(seconds: float, seed: int) -> bytes:
    draw = np.random.default_rng(seed).normal(scale=3000, size=int(16000 * seconds))
    return bytes(draw.astype("<i2").tobytes())


@pytest.mark.parametrize(("mels", "window"), [(80, 30), (128, 30), (16, 1)])
def test_features_are_the_extractors(mels: int, window: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=window)
    rows = [{"audio": noise(seconds, seed)} for seed, seconds in enumerate((window, 0.3, window + 0.5))]
    rows.append({"audio": np.full(9000, 12000, "<i2").tobytes()})
    features = SoundFeatures(extractor, torch.device("cpu"))
    sounds = features.sounds(rows, fill=5)
    found = features(sounds)
    theirs = extractor(
        [samples_of(row["audio"]) for row in rows] + [np.zeros(0, np.float32)],
        sampling_rate=16000,
        return_tensors="pt",
    )["input_features"]
    assert sounds.dtype == torch.int16 and found.shape == (5, mels, 100 * window)
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5)


def test_features_of_another_kind_are_left_to_the_extractor() -> None:
    assert other_features(WhisperFeatureExtractor()) is None
    assert "noise" in str(other_features(WhisperFeatureExtractor(dither=0.1)))
    assert "SimpleNamespace" in str(other_features(SimpleNamespace()))


def test_filling_changes_no_loss_and_no_gradient(files: tuple[Path, Path]) -> None:
    trainer = SpeechTraining(next_attempt(create_run(recipe(files)))).trainer
    rows = trainer.train_dataset.select(range(6)).to_list()
    rows[1]["labels"] = rows[1]["labels"][:4]
    found = []
    for filling in (Filling(), Filling(rows=8, tokens=24)):
        recordings = trainer.collate.recordings(rows, filling)
        trainer.model.zero_grad()
        loss = trainer._forward_backward(trainer._heard(recordings), torch.tensor(float(recordings.tokens)))
        gradients = [one.grad.flatten() for one in trainer.model.parameters() if one.requires_grad]
        found.append((recordings, loss, torch.cat(gradients)))
    (short, loss, gradient), (filled, other_loss, other_gradient) = found
    assert short.tokens == filled.tokens == sum(len(row["labels"]) for row in rows)
    assert filled.labels.shape == (8, 24) and len(filled.sounds) == 8
    torch.testing.assert_close(other_loss, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-4, atol=1e-7)
    assert gradient.abs().max() > 0


def test_steps_have_the_losses_of_the_base_trainers(files: tuple[Path, Path]) -> None:
    def plainly(trainer: Any) -> None:
        trainer.plain_reason = "the test"

    ours, losses, _ = trained(recipe(files), lambda trainer: None)
    plain, plain_losses, _ = trained(recipe(files), plainly)
    assert ours.graph_reason == "they are a GPU's" and ours.flat is not None and plain.flat is None
    assert len(losses) == 6
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-4)


class Replayed:
    """A graph that computes again what was captured, where a GPU would launch it."""

    def __init__(self, step: GraphedStep[HeardBatch], batch: HeardBatch, scale: torch.Tensor) -> None:
        self.step, self.batch, self.scale, self.loss = step, batch, scale, torch.zeros(())
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.loss.copy_(self.step.run(self.batch, self.scale))


@pytest.fixture
def captured() -> list[Replayed]:
    """All graphs of a test."""
    return []


@pytest.fixture
def replaying(monkeypatch: pytest.MonkeyPatch, captured: list[Replayed]) -> Any:
    """Makes a trainer of a CPU do what it does on a GPU, but for the graph itself."""

    def capture(step: Any, batch: HeardBatch, scale: torch.Tensor) -> Any:
        graph = Replayed(step, batch, scale)
        # Static tensors are the graph's own: they belong to no batch that was collated.
        batch = graph.batch = replace(batch, before=batch.before.clone(), labels=batch.labels.clone())
        captured.append(graph)
        return graphed._Captured(graph, batch, scale, graph.loss, step.shared())  # type: ignore[arg-type]

    monkeypatch.setattr(GraphedStep, "_capture", capture)
    monkeypatch.setattr(HeardBatch, "pinned", lambda batch: batch)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def graphs(trainer: Any) -> None:
        trainer.graph_reason, trainer.filling = None, Filling(8, 16)

    return graphs


def test_replayed_steps_are_the_eager_ones(
    files: tuple[Path, Path], replaying: Any, captured: list[Replayed]
) -> None:
    wanted = recipe(files)
    _, eager, _ = trained(wanted, lambda trainer: None)
    trainer, losses, _ = trained(wanted, replaying)
    # The smaller batch has the shape of all; held-out rows, after four steps and six, get the graph's memory.
    assert [graph.replays for graph in captured] == [4 * 2 - 1, 2 * 2] and not trainer.graphed.graphs
    assert all(graph.batch.labels.shape == (8, 16) for graph in captured)
    np.testing.assert_allclose(losses, eager, rtol=1e-4)


def test_a_capture_that_fails_is_said_once_and_steps_go_on(
    files: tuple[Path, Path], replaying: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(files)
    _, eager, _ = trained(wanted, lambda trainer: None)

    def fails(step: Any, batch: HeardBatch, scale: torch.Tensor) -> None:
        step.stopped = "an operation waits for the host"

    monkeypatch.setattr(GraphedStep, "_capture", fails)
    trainer, losses, events = trained(wanted, replaying)
    said = [event.finding for event in events if isinstance(event, FindingEvent)]
    slow = [finding for finding in said if "graphs: an operation waits for the host" in finding.evidence]
    assert len(slow) == 1 and slow[0].id == "L08" and not trainer.graphed.graphs
    np.testing.assert_allclose(losses, eager, rtol=1e-4)


@pytest.mark.parametrize(
    "error", [OutOfResources(300, 200, "shared memory"), RuntimeError("capturing\nmore")]
)
def test_what_cannot_be_captured_runs_eagerly(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    @contextmanager
    def capturing(*_: Any, **__: Any) -> Any:
        yield
        raise error

    for name in ("synchronize", "empty_cache", "CUDAGraph", "current_stream", "set_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(HeardBatch, "pinned", lambda batch: batch)
    step: GraphedStep[HeardBatch] = GraphedStep(lambda batch, scale: batch.features.sum() / scale, list)
    zeros = torch.zeros(2, 3, dtype=torch.long)
    for number in range(3):
        batch = HeardBatch(torch.full((2, 4, 5), float(number)), zeros, zeros, None)
        if number == 1:
            with pytest.warns(UserWarning, match="not replayed as CUDA graphs"):
                assert step(batch, 2, torch.device("cpu")) == 20.0
        else:
            assert step(batch, 2, torch.device("cpu")) == 20.0 * number
    assert step.stopped == str(error).splitlines()[0] and not step.graphs


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("config", "args", "reason"),
    [
        ({}, {}, None),
        ({}, {"device": torch.device("cpu")}, "a GPU's"),
        ({"apply_spec_augment": True}, {}, "SpecAugment"),
        ({"encoder_layerdrop": 0.1}, {}, "layers are dropped"),
        ({"decoder_layerdrop": 0.1}, {}, "layers are dropped"),
        ({"_attn_implementation": "eager"}, {}, "attention"),
        ({}, {"optim": "adafactor"}, "gradients"),
    ],
)
def test_reasons_against_graphs(
    files: tuple[Path, Path], config: dict[str, Any], args: dict[str, Any], reason: str | None
) -> None:
    model = SpeechTraining(next_attempt(create_run(recipe(files)))).hearing.model
    for name, value in config.items():
        setattr(model.get_base_model().config, name, value)
    stand_in: Any = SimpleNamespace(
        args=SimpleNamespace(**{"device": CUDA, "optim": "adamw_bnb_8bit"} | args), model=model
    )
    found = HearingSteps._graph_refusal(stand_in)
    assert found is None if reason is None else reason in str(found)


def test_the_report_says_what_steps_are() -> None:
    assert str(fused(None, None)) == "graphs 1/1" and fused(None, None).complete
    assert str(fused(None, "why")) == "graphs 0/1; graphs: why (x1)"
    assert str(fused("fp16 scales its losses", None)) == "steps 0/1; steps: fp16 scales its losses (x1)"


def test_plans_that_forbid_graphs_say_so(files: tuple[Path, Path]) -> None:
    training = SpeechTraining(next_attempt(create_run(recipe(files))))
    assert training._graph_refusal() is None
    for change, reason in (
        ({"gradient_checkpointing": True}, "second time"),
        ({"base_precision": "nf4"}, "rounded"),
    ):
        training.resolved = training.resolved.model_copy(update=change)
        assert reason in str(training._graph_refusal())
        training.resolved = training.plan.resolved
