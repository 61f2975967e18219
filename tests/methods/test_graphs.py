"""Packed micro-batches as CUDA graphs, their control flow on a CPU: what is captured, and what is said where
nothing can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.live_runs import attempt, findings_of
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, tiny_recipe, write_chat_rows
from triton.runtime.errors import OutOfResources

from whet.engine.methods.sft.graphs import GraphedLoss
from whet.engine.methods.sft.job import SFTTraining
from whet.engine.methods.sft.packed_steps import MicroBatch, TokenRow, micro_batches

CPU = torch.device("cpu")


class FakeGraph:
    """Replays nothing: what was computed while it was captured stands."""

    replays = 0

    def pool(self) -> str:
        return "the pool"

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The memory that each capture was given."""
    given: list[Any] = []

    @contextmanager
    def capturing(graph: FakeGraph, pool: Any = None) -> Iterator[None]:
        given.append(pool)
        yield

    for name in ("synchronize", "empty_cache", "current_stream", "set_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    yield given


def batch(*lengths: int) -> MicroBatch:
    rows = [TokenRow(np.arange(length), np.arange(length)) for length in lengths]
    (found,) = micro_batches(rows, budget=4096, multiple=64)
    return found


def test_a_shape_is_captured_the_second_time_it_comes(pools: list[Any]) -> None:
    runs: list[int] = []

    def run(batch: MicroBatch, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        runs.append(len(batch.packed.input_ids_T))
        return batch.labels_S.float().sum() * scale, torch.tensor(1.0)

    graphed = GraphedLoss(run)
    for _ in range(3):
        for lengths in ((30, 20), (100, 70)):
            graphed(batch(*lengths), 0.5, CPU)
    assert runs == [64, 192, 64, 192]  # eagerly, then captured; the third time nothing runs
    graphs: list[Any] = [one.graph for one in graphed.graphs.values()]
    assert [graph.replays for graph in graphs] == [2, 2]
    assert pools == [None, "the pool"]
    assert graphed.newly_stopped() is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("2 GiB of 3\nPID 4"), "too little memory beside what is cached"),
        (RuntimeError("waits for the host\nand more"), "waits for the host"),
        (OutOfResources(300, 200, "shared memory"), "out of resource: shared memory"),
    ],
)
def test_what_cannot_be_captured_runs_eagerly_and_is_said_once(
    pools: list[Any], monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the stream before")
    streams: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    failing = [False, True, False, False]

    def run(batch: MicroBatch, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if failing.pop(0):
            raise error
        return scale * 6, scale

    graphed = GraphedLoss(run)
    assert [float(graphed(batch(30, 20), 0.5, CPU)[0]) for _ in range(3)] == [3.0, 3.0, 3.0]
    assert not graphed.graphs and not failing
    assert streams == ["the stream before"]
    assert (graphed.newly_stopped() or "").startswith(reason)
    assert graphed.newly_stopped() is None


def test_a_run_tells_that_its_steps_are_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    model, rows = build_tiny_model(tmp_path / "llama"), write_chat_rows(tmp_path / "rows.jsonl", 12)

    def stopped(context: Any) -> SFTTraining:
        training = SFTTraining(context)
        training.trainer.fast.graphed.stopped = "no room"
        return training

    run = create_run(tiny_recipe(model, rows, training={"max_steps": 3}))
    assert attempt(run, method=stopped) == "finished"
    said = [finding for finding in findings_of(run) if "graphs: no room" in finding.evidence]
    assert [finding.id for finding in said] == ["L08"]
