"""How many processes a run has: those of its plan, and one when only its export is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_models import build_tiny_model
from support.tiny_runs import create_run, next_attempt, tiny_recipe, write_chat_rows

from whet.engine.runs.gpu_queue import planned_ranks


@pytest.mark.parametrize(("kind", "trained"), [("lora", "adapter"), ("none", "model")])
def test_what_is_trained_needs_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, trained: str
) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHET_CPU_RANKS", "2")
    model, rows = build_tiny_model(tmp_path / "llama"), write_chat_rows(tmp_path / "rows.jsonl", 24)
    context = next_attempt(create_run(tiny_recipe(model, rows, adapter={"kind": kind, "dropout": 0.0})))
    assert planned_ranks(context) == 2
    (context.dir.export / trained).mkdir(parents=True)
    assert planned_ranks(context) == 1
    started = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    for name, value in (started | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    assert planned_ranks(next_attempt(context.dir)) == 2  # somebody else started the other one
