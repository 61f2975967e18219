"""Supervised steps as CUDA graphs against eager ones, and what a capture that fails leaves behind.

Run by hand: `PYTHONPATH=src:tests python -P -m pytest -q -m gpu tests/gpu/test_gpu_graphs.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_families import build

from whet.engine.methods.flat_optimizer import FlatAdamW
from whet.engine.methods.graphed import NotCaptured, capture
from whet.engine.methods.sft.fast_step import FastStep
from whet.engine.methods.sft.graphs import Results
from whet.engine.methods.sft.packed_steps import MicroBatch, TokenRow
from whet.engine.models.adapters import add_adapter
from whet.engine.models.fast_path import apply_fast_path, program_of
from whet.engine.recipe import AdapterSection

pytestmark = pytest.mark.gpu

STEPS = 6


def rows_of(step: int) -> list[TokenRow]:
    draw = np.random.default_rng(step)
    rows = []
    for length in (40, 17, 63):
        ids = draw.integers(3, 90, length)
        rows.append(TokenRow(ids, np.concatenate([[-100], ids[1:]])))
    return rows


def trained(kind: str) -> tuple[list[float], torch.Tensor, FastStep]:
    """Losses and weights of some steps; ``kind`` is eager, graphed or failing (in its first capture)."""
    torch.manual_seed(0)
    base: Any = build("llama", torch.bfloat16)
    model = add_adapter(base.cuda(), AdapterSection(rank=8, alpha=8), seed=0)
    apply_fast_path(model, torch.bfloat16)
    program = program_of(model)
    assert program is not None and program.report.complete
    step = FastStep(program, torch.device("cuda"), budget=4096)
    if kind == "eager":
        step.graphed.stopped = "the test"
    elif kind == "failing":
        run = step.graphed.run

        def waits_for_the_host(batch: MicroBatch, scale: torch.Tensor) -> Results:
            found = run(batch, scale)
            if torch.cuda.is_current_stream_capturing():
                found[0].item()
            return found

        step.graphed.run = waits_for_the_host
    optimizer = FlatAdamW([each for each in model.parameters() if each.requires_grad], lr=3e-2, bits=32)
    losses = []
    for number in range(STEPS):
        optimizer.zero_grad()
        losses.append(float(step.train(rows_of(number % 2), 117).loss))
        optimizer.step()
    weights = [each.detach().float().flatten() for each in model.parameters() if each.requires_grad]
    return losses, torch.cat(weights), step


def test_a_graph_and_a_failed_capture_change_nothing() -> None:
    stream = torch.cuda.current_stream()
    losses, weights, step = trained("eager")
    assert not step.graphed.graphs and losses[4] < losses[2] < losses[0]
    for kind in ("graphed", "failing"):
        found, ours, step = trained(kind)
        assert found == losses and torch.equal(ours, weights), kind
        assert len(step.graphed.graphs) == (kind == "graphed")
        assert (step.graphed.newly_stopped() is None) == (kind == "graphed")
        assert torch.cuda.current_stream() == stream


def test_the_next_capture_after_a_failed_one_replays() -> None:
    x = torch.ones(4, device="cuda")
    stream = torch.cuda.current_stream()
    with pytest.raises(NotCaptured, match=r"\S"):
        capture(lambda: float(x.sum().item()), [])
    assert torch.cuda.current_stream() == stream
    graph, twice = capture(lambda: x * 2, [])
    x.fill_(3.0)
    graph.replay()
    assert twice.tolist() == [6.0] * 4
