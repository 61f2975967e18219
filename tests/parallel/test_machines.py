"""Several machines like this one: their GPUs count together, and all of them take part."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.plan_inputs import gpu, machine, model_facts, recipe, report

from whet.engine.parallel.fitting import RankPlan, fit_ranks
from whet.engine.resolve import resolve


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    facts = model_facts(tmp_path / "llama")
    here = machine(
        *(gpu(80).model_copy(update={"index": one, "uuid": f"GPU-{one}"}) for one in range(2)), ram_gib=512
    )

    def plan(**patch: object) -> RankPlan:
        wanted = recipe(training__gradient_accumulation=4, **patch)
        resolved, _ = resolve(wanted, facts, here, report(), 5000)
        return fit_ranks(wanted, resolved, facts, report(), here)

    return plan


def test_auto_takes_the_gpus_of_all_machines(planned) -> None:  # type: ignore[no-untyped-def]
    for wish in ("auto", 4):
        plan = planned(hardware__machines=2, hardware__gpus=wish)
        assert plan.problem is None and plan.resolved.ranks == 4
    assert planned().resolved.ranks == planned(hardware__machines=1).resolved.ranks == 1


def test_what_they_do_not_have_together_is_refused(planned) -> None:  # type: ignore[no-untyped-def]
    plan = planned(hardware__machines=2, hardware__gpus=8)
    assert plan.resolved.ranks == 1 and plan.problem is not None
    assert plan.problem.evidence["there"] == 4
