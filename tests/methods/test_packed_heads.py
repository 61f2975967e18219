"""Heads on packed texts: losses and gradients are those of padded batches, and there is a reason where texts
are not packed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.head_runs import CASES, STEPS, recipe
from support.live_runs import attempt
from support.tiny_embedders import save_transformer
from support.tiny_runs import create_run, events_of, next_attempt

from whet.engine.methods.filling import coarser
from whet.engine.methods.flat_optimizer import FlatAdamW
from whet.engine.methods.head_batches import HeadBatch, Packing
from whet.engine.methods.reranker.job import RerankerTraining
from whet.engine.recipe import Recipe
from whet.engine.runs.events import EvalEvent, FindingEvent, PhaseEvent, StepEvent
from whet.engine.runs.store import RunDir

FAMILIES = ("bert", "xlm-r", "roberta", "modernbert")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    found = {name: save_transformer(root / name, name) for name in (*FAMILIES, "qwen3")}
    found["modernbert mean"] = save_transformer(root / "mean", "modernbert")
    config = json.loads((root / "mean" / "config.json").read_text())
    (root / "mean" / "config.json").write_text(json.dumps(config | {"classifier_pooling": "mean"}))
    return found


def training(case: str, model: Path, folder: Path, **sections: dict[str, Any]) -> Any:
    return CASES[case][0](next_attempt(create_run(recipe(case, model, folder, **sections))))


def moved(trained: Any) -> Any:
    """The trainer of a training whose adapter is not zero."""
    generator = torch.Generator().manual_seed(1)
    for path, parameter in trained.trainer.model.named_parameters():
        if "lora_B" in path:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return trained.trainer


def rows_of(trainer: Any) -> list[dict[str, Any]]:
    data: Dataset = trainer.train_dataset
    return [data[number] for number in range(len(data))]


def gradients(trainer: Any, loss: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The loss, and all of its gradients after one another; none is left behind."""
    if loss.requires_grad:
        loss.backward()
    found = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    trainer.model.zero_grad()
    return float(loss.detach()), torch.cat(found)


def of_padded(trainer: Any, batch: dict[str, Any], share: int) -> tuple[float, torch.Tensor]:
    """What a padded micro-batch gives, its loss divided by ``share``."""
    divided = trainer.compute_loss_func is None
    loss = trainer.compute_loss(
        trainer.model, dict(batch), num_items_in_batch=None if divided else torch.tensor(share)
    )
    return gradients(trainer, loss / share if divided else loss)


def of_packed(trainer: Any, batch: HeadBatch, share: int) -> tuple[float, torch.Tensor]:
    return gradients(trainer, trainer._forward_backward(batch, torch.tensor(float(share))))


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *[(name, case) for name in FAMILIES for case in ("classes", "tags", "triplets")],
        ("modernbert mean", "classes"),
        *[("bert", case) for case in ("pairs", "label sets", "scores", "distances")],
    ],
)
def test_packed_batches_have_the_loss_and_gradients_of_padded_ones(
    folders: dict[str, Path], tmp_path: Path, name: str, case: str
) -> None:
    trainer = moved(training(case, folders[name], tmp_path))
    assert trainer.plain_reason is None and trainer.packing.multiple == 1
    trainer.model.train()
    batch = trainer.data_collator(rows_of(trainer))
    value, wanted = of_padded(trainer, batch, 7)
    whole, plain = trainer.pack(batch)["texts"], trainer.packing
    for multiple in (1, 64):  # filled up and with empty documents behind, as a graph has it
        trainer.packing = replace(plain, multiple=multiple)
        packed = trainer.pack(batch)["texts"]
        assert len(packed.texts.packed.input_ids_T) % multiple == 0 and packed.tokens == whole.tokens
        seen, found = of_packed(trainer, packed, 7)
        assert seen == pytest.approx(value, rel=1e-5)
        assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    assert int(whole.texts.packed.offsets.diff().max()) == whole.texts.packed.longest == 32


@pytest.mark.parametrize("case", ["pairs", "tags", "scores"])
def test_a_batch_takes_the_place_of_another_of_its_shape(
    folders: dict[str, Path], tmp_path: Path, case: str
) -> None:
    """What a replay does: all that differs between two batches is copied."""
    trainer = moved(training(case, folders["bert"], tmp_path))
    trainer.packing = replace(trainer.packing, multiple=512)
    rows = rows_of(trainer)
    one, other = (trainer.pack(trainer.data_collator(some))["texts"] for some in (rows[:4], rows[4:8]))
    assert one.shape == other.shape
    trainer.model.train()
    (value, wanted), (before, _) = of_packed(trainer, one, 4), of_packed(trainer, other, 4)
    assert before != pytest.approx(value, rel=1e-3)
    for target, source in zip(other.tensors(), one.tensors(), strict=True):
        target.copy_(source)
    seen, found = of_packed(trainer, other, 4)
    assert seen == value and torch.equal(found, wanted)


def finished(case: str, wanted: Recipe, packs: bool) -> RunDir:
    """A whole run; without packing as it would be without a reason."""

    def method(context: Any) -> Any:
        made = CASES[case][0](context)
        assert made.trainer.packing is not None
        if not packs:
            made.trainer.packing = None
        return made

    run = create_run(wanted)
    assert attempt(run, method=method) == "finished"
    return run


@pytest.mark.parametrize(
    ("name", "case"), [("bert", "classes"), ("xlm-r", "triplets"), ("modernbert", "tags")]
)
def test_runs_take_the_same_steps(folders: dict[str, Path], tmp_path: Path, name: str, case: str) -> None:
    """Of micro-batches whose number of labels differs, an epoch's last step of fewer of them."""
    wanted = recipe(case, folders[name], tmp_path)
    events = [events_of(finished(case, wanted, packs)) for packs in (True, False)]
    steps = [[event for event in each if isinstance(event, StepEvent)] for each in events]
    assert len(steps[0]) == len(steps[1]) == STEPS
    for ours, theirs in zip(*steps, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=2e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=2e-5)
        assert ours.tokens == theirs.tokens
    ours, theirs = ([e.loss for e in each if isinstance(e, EvalEvent)] for each in events)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    assert len(ours) == 3


@pytest.mark.parametrize("case", ["tags", "scores"])
def test_a_stopped_run_goes_on_where_it_was(folders: dict[str, Path], tmp_path: Path, case: str) -> None:
    wanted = recipe(case, folders["xlm-r"], tmp_path)
    whole = [event.loss for event in events_of(finished(case, wanted, True)) if isinstance(event, StepEvent)]
    run = create_run(wanted)
    assert attempt(run, stop_after=3, method=CASES[case][0]) == "stopped"
    assert attempt(run, method=CASES[case][0]) == "finished"
    steps = {event.step: event.loss for event in events_of(run) if isinstance(event, StepEvent)}
    assert list(steps.values()) == whole


def test_sums_of_lengths_fall_on_few_shapes() -> None:
    assert [coarser(1, 9000), coarser(256, 3), coarser(256, 3000), coarser(256, 9000)] == [1, 256, 256, 512]
    draw, packing, shapes = np.random.default_rng(0), Packing("first", 256, 0), set()
    for _ in range(40):
        mask = torch.arange(432)[None] < torch.from_numpy(draw.integers(144, 432, 64))[:, None]
        batch = packing.pack({"attention_mask": mask, "input_ids": mask.long()}, torch.zeros(64))
        assert batch is not None
        shapes.add(batch.shape)
        assert batch.tokens <= batch.shape[0] < 1.07 * batch.tokens
    assert len(shapes) <= 5


def test_rows_that_are_packed_ahead_take_time_too(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, now = training("classes", folders["bert"], tmp_path).trainer, 0.0

    def slow_rows() -> Iterator[int]:
        nonlocal now
        while True:
            now += 2.0
            yield 0

    monkeypatch.setattr("time.perf_counter", lambda: now)
    trainer._ahead.take(slow_rows(), 3)
    trainer.fetch_ahead()
    trainer.fetch_ahead()
    assert trainer.data_seconds == 6.0


def test_gradients_lie_in_flat_buffers(folders: dict[str, Path], tmp_path: Path) -> None:
    trainer = training("classes", folders["bert"], tmp_path).trainer
    trainer.create_optimizer()
    assert isinstance(trainer.flat, FlatAdamW) and not trainer.flat.others


def test_dropout_of_an_adapter_is_known_after_an_evaluation(folders: dict[str, Path], tmp_path: Path) -> None:
    """Graphs ask: its seeds would stay what they were when a step was captured."""
    for rate in (0.0, 0.1):
        trainer = training("classes", folders["bert"], tmp_path, adapter={"dropout": rate}).trainer
        trainer.evaluate()
        projections = trainer.program.in_force.projections
        assert not any(projection.stack.drops for projection in projections)
        assert all(projection.has_dropout is (rate > 0) for projection in projections)


def test_a_text_without_tokens_goes_transformers_way(folders: dict[str, Path], tmp_path: Path) -> None:
    trainer = training("classes", folders["bert"], tmp_path).trainer
    batch = trainer.data_collator(rows_of(trainer)[:3])
    batch["attention_mask"][1] = 0
    assert trainer.pack(batch) is batch


@pytest.mark.parametrize(
    ("name", "case", "sections", "reason"),
    [
        ("qwen3", "classes", {}, "not on the fast path"),
        ("bert", "classes", {"adapter": {"kind": "none"}}, "not on the fast path"),
        ("bert", "triplets", {"method": {"kind": "reranker", "loss": "multiple_negatives"}},
         "MultipleNegativesRankingLoss makes pairs of its own"),
    ],
)  # fmt: skip
def test_what_is_not_packed_has_a_reason(
    folders: dict[str, Path], tmp_path: Path, name: str, case: str, sections: dict[str, Any], reason: str
) -> None:
    trainer = training(case, folders[name], tmp_path, **sections).trainer
    assert trainer.packing is None and reason in trainer.plain_reason


def test_the_reason_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    method = {"kind": "reranker", "loss": "multiple_negatives"}
    run = create_run(recipe("triplets", folders["bert"], tmp_path, method=method))
    RerankerTraining(next_attempt(run))
    events = events_of(run)
    said = [event.detail for event in events if isinstance(event, PhaseEvent)]
    assert any("steps 0/1; steps: MultipleNegativesRankingLoss" in detail for detail in said)
    notes = [event.finding for event in events if isinstance(event, FindingEvent)]
    assert "L08" in [note.id for note in notes]


def test_padding_in_front_is_not_packed(folders: dict[str, Path], tmp_path: Path) -> None:
    made = training("classes", folders["bert"], tmp_path)
    made.headed.tokenizer.padding_side = "left"
    made.trainer.choose_steps(made.headed.tokenizer)
    assert made.trainer.plain_reason == "texts are padded in front"


def slow_notes(run: RunDir) -> list[dict[str, Any]]:
    """Evidence of L08."""
    found = [event.finding for event in events_of(run) if isinstance(event, FindingEvent)]
    return [finding.evidence for finding in found if finding.id == "L08"]


def test_a_model_that_was_changed_is_slower_and_that_is_said(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """The report before the first step said that batches are packed."""

    def method(context: Any) -> Any:
        made = CASES["classes"][0](context)
        made.trainer.model.add_adapter("second", made.trainer.model.peft_config["default"])
        return made

    run = create_run(recipe("classes", folders["bert"], tmp_path))
    with pytest.warns(UserWarning, match="not packed, which is slower: the model was changed"):
        assert attempt(run, method=method) == "finished"
    assert len([event for event in events_of(run) if isinstance(event, StepEvent)]) == STEPS
    (evidence,) = slow_notes(run)
    assert evidence["steps: the model was changed since it was read"] == 1


def test_graphs_that_cannot_be_captured_are_said_once(folders: dict[str, Path], tmp_path: Path) -> None:
    """What a device says at the first capture, played on one without graphs."""

    def method(context: Any) -> Any:
        trainer = (made := CASES["classes"][0](context)).trainer

        def eager(batch: HeadBatch, divisor: Any, device: torch.device) -> torch.Tensor:
            trainer.graphed.stopped = "out of memory"
            return trainer._forward_backward(batch, torch.as_tensor(divisor))

        trainer.graphed = Mock(side_effect=eager, stopped=None)
        trainer.graph_reason = None
        return made

    run = create_run(recipe("classes", folders["bert"], tmp_path))
    assert attempt(run, method=method) == "finished"
    (evidence,) = slow_notes(run)
    assert evidence["graphs: out of memory"] == 1
