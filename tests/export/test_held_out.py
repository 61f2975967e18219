"""Rows for the proof come from the source, and from the prepared tokens where the source is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.tiny_models import build_tiny_model
from support.tiny_runs import tiny_recipe, write_chat_rows

from whet.engine.errors import WhetError
from whet.engine.export.held_out import planned_rows
from whet.engine.export.of_run import asks_rows
from whet.engine.export.smoke_cases import Limits
from whet.engine.plan import make_plan
from whet.engine.recipe import ExportSection


def test_a_lost_source_costs_the_conversations_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    model = build_tiny_model(tmp_path / "llama")
    rows, held_out = write_chat_rows(tmp_path / "rows.jsonl"), write_chat_rows(tmp_path / "held.jsonl", 6, 1)
    plan = make_plan(tiny_recipe(model, rows, data={"eval": str(held_out)}))
    limits = Limits(held_out_rows=4)
    whole = planned_rows(plan, model, limits)
    assert len(whole) == 4 and all(row["messages"] for row in whole)
    held_out.unlink()
    tokens = planned_rows(plan, model, limits)
    assert tokens == [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in whole]
    shutil.rmtree(plan.data.dir)
    with pytest.raises(WhetError) as lost:
        planned_rows(plan, model, limits)
    assert lost.value.code == "data.not_found"


def test_a_template_that_the_plan_chose_renders_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    model = build_tiny_model(tmp_path / "llama")
    config = json.loads((model / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    plan = make_plan(tiny_recipe(model, write_chat_rows(tmp_path / "rows.jsonl")))
    assert plan.data.report.template == "vicuna"
    assert all(row["messages"] and row["input_ids"] for row in planned_rows(plan, model))


@pytest.mark.parametrize("asked", ["merged", "merged_4bit", "fp8", "adapter_gguf"])
def test_all_that_is_proven_is_proven_on_them(tmp_path: Path, asked: str) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path / "rows.jsonl")
    assert asks_rows(ExportSection.model_validate({asked: True}), recipe)
    assert asks_rows(ExportSection(gguf=["f16"]), recipe)
    assert not asks_rows(ExportSection(), recipe)  # the adapter alone has no proof


def test_rows_with_thinking_or_tools_are_proven_on_their_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rendering them again needs what training knew of thinking and tools."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    model, rows = build_tiny_model(tmp_path / "llama"), tmp_path / "rows.jsonl"
    ask, answer = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}
    conversations = [
        {"messages": [ask, answer]},
        {"messages": [ask, {**answer, "thinking": "Greet."}]},
        {"messages": [ask, answer], "tools": [{"name": "search"}]},
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in conversations), encoding="utf-8")
    found = planned_rows(make_plan(tiny_recipe(model, rows)), model)
    assert [row["messages"] is not None for row in found] == [True, False, False]
    assert all(row["labels"].count(-100) < len(row["labels"]) for row in found)
