"""What only several GPUs hold together is not loaded on one to be evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.plan_inputs import GIB, gpu, machine, model_facts, recipe
from support.tiny_models import build_tiny_model
from support.tiny_runs import tiny_recipe, write_chat_rows

from whet.engine import api
from whet.engine.errors import WhetError
from whet.engine.hardware import Machine
from whet.engine.parallel.evaluation import evaluation_bytes, refuse_too_large
from whet.engine.plan import Plan, make_plan
from whet.engine.runs.store import RunStore


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Of an 8B model in bf16, in shares on two GPUs."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    rows = write_chat_rows(tmp_path / "rows.jsonl")
    made = make_plan(tiny_recipe(build_tiny_model(tmp_path / "base"), rows, data={"eval": str(rows)}))
    shares = {"strategy": "fsdp", "ranks": 2, "base_precision": "bf16", "device": "cuda"}
    return made.model_copy(
        update={
            "recipe": made.recipe.model_copy(update={"adapter": recipe().adapter}),
            "model": model_facts(tmp_path / "llama"),
            "resolved": made.resolved.model_copy(update=shares),
        }
    )


def test_the_evaluation_of_shares_needs_the_whole_model(plan: Plan) -> None:
    weights = 2 * plan.model.parameters.total
    assert weights < evaluation_bytes(plan) < 1.2 * weights
    enough = evaluation_bytes(plan) / GIB + 0.1
    refuse_too_large("run", plan, machine(gpu(enough), gpu(enough)))
    whole = plan.model_copy(update={"resolved": plan.resolved.model_copy(update={"strategy": "ddp"})})
    refuse_too_large("run", whole, machine(gpu(12)))


def test_it_is_refused_before_anything_is_started(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def two_small(**_: Any) -> Machine:
        return machine(gpu(12), gpu(12))

    monkeypatch.setattr("whet.engine.job_starts.inspect_machine", two_small)
    run = RunStore().create(plan, "test")
    (run.export / "adapter").mkdir()
    with pytest.raises(WhetError) as refused:
        api.start_evaluation(run.id, started_by="test")
    assert refused.value.code == "eval.too_large" and "has 12.0" in refused.value.message
    assert f"whet export {run.id} --gguf q4_k_m" in refused.value.hint
    assert [one.id for one in RunStore()] == [run.id]
