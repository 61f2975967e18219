"""Runs with base, embedding and head in fewer bits: they train, say what rounding does, merge in full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, events_of, next_attempt, tiny_recipe, write_chat_rows

from whet.engine.methods.sft.job import run_sft
from whet.engine.runs.events import FindingEvent, StepEvent


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    "held",
    [
        {"precision": "fp8"},
        {"precision": "nf4", "embedding_precision": "nf4", "head_precision": "int8"},
    ],
)
def test_a_run_with_rounded_weights(tmp_path: Path, held: dict[str, Any]) -> None:
    base = build_tiny_model(tmp_path / "base")
    rows = write_chat_rows(tmp_path / "rows.jsonl")
    recipe = tiny_recipe(base, rows, model=held, training={"max_steps": 3}, export={"merged": True})
    run = create_run(recipe)
    run_sft(next_attempt(run))
    events = events_of(run)
    losses = [event.loss for event in events if isinstance(event, StepEvent)]
    assert len(losses) == 3 and all(3 < loss < 9 for loss in losses)
    found = {event.finding.id for event in events if isinstance(event, FindingEvent)}
    assert ("L12" in found) == (held["precision"] == "fp8")
    merged, original = (load_file(folder / "model.safetensors") for folder in (run.export / "merged", base))
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        torch.testing.assert_close(merged[name].float(), original[name], rtol=2**-8, atol=0)
    changed = "model.layers.0.mlp.down_proj.weight"
    assert merged[changed].shape == original[changed].shape
    assert not torch.equal(merged[changed].float(), original[changed])
