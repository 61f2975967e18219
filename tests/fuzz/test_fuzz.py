"""A short seeded part of `make fuzz`: some hundred inputs over the targets that need no torch."""

from __future__ import annotations

from fuzz.case import draw
from fuzz.pool import Worker
from fuzz.suite import run
from fuzz.targets import planted
from fuzz.worker import targets

SEED = 20261129


def test_no_input_gets_further_than_a_clear_error() -> None:
    inputs = {target.name: target.in_ci for target in targets().values() if target.in_ci}
    outcomes = list(run(inputs, SEED))
    assert len(outcomes) == sum(inputs.values()) > 300
    assert {outcome.outcome for outcome in outcomes} >= {"done", "refused"}
    found = [outcome for outcome in outcomes if outcome.outcome == "finding"]
    again = [f"suite.py --target {one.target} --seed {SEED}: {one.number}, {one.why!a}" for one in found]
    assert not found, "\n".join([*again, ascii(found[0].trace)])


def test_the_harness_sees_what_it_is_there_for() -> None:
    (target,) = planted.TARGETS
    numbers = {draw(target, SEED, number).call["kind"]: number for number in range(50)}
    with Worker() as worker:
        seen = {kind: worker.ask(target.name, SEED, numbers[kind]) for kind in planted.KINDS}
    assert {outcome.outcome for outcome in seen.values()} == {"finding"}
    why = {kind: outcome.why for kind, outcome in seen.items()}
    assert why["exception"].startswith("KeyError") and why["exit"] == "SystemExit: 7"
    assert "outside of home and out: open" in why["write"] and "os.rename" in why["rename"]
    assert why["memory"].startswith("MemoryError") and why["abort"] == "the process died with code -6"
