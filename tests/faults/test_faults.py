"""Every broken set-up raises its own id, and the fix ends it; healthy ones raise nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.harness import Fault, Healthy, try_fault
from faults.healthy_cases import HEALTHY
from faults.suite import FAULTS, try_healthy

from whet.engine.checks.catalogue import CATALOGUE


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


LONG = {
    ("E03", "a download that stands still"),
    ("L02", "embedding with rows cut off"),
    ("L11", "memory the plan thought was there"),
    ("T05", "other numbers in the checkpoint"),
    ("T06", "no answer is ever right"),
    ("T07", "a rate next to nothing"),
    ("T07", "a rate that is too high"),
    ("X03", "another chat template in the file"),
    ("X03", "rounded too far"),
}
LONG_HEALTHY = {"a script: packed", "a script: rendered texts, responses only"}
"""Eight seconds and more each, with others like them: `make slow` and `make faults` try them."""


def _case(fault: Fault) -> object:
    marks = pytest.mark.slow if (fault.id, fault.name) in LONG else ()
    return pytest.param(fault, id=f"{fault.id}-{fault.name}", marks=marks)


def _healthy(one: Healthy) -> object:
    return pytest.param(one, id=one.name, marks=pytest.mark.slow if one.name in LONG_HEALTHY else ())


@pytest.mark.parametrize("fault", [_case(fault) for fault in FAULTS])
def test_fault(fault: Fault, tmp_path: Path) -> None:
    outcome = try_fault(fault, tmp_path)
    assert outcome.caught, outcome.why


@pytest.mark.parametrize("healthy", [_healthy(one) for one in HEALTHY])
def test_healthy(healthy: Healthy, tmp_path: Path) -> None:
    outcome = try_healthy(healthy, tmp_path)
    assert outcome.caught, outcome.why


@pytest.mark.parametrize("id", sorted(id for id, entry in CATALOGUE.items() if entry.awaits is None))
def test_each_id_has_two_faults(id: str) -> None:
    assert len([fault for fault in FAULTS if fault.id == id]) >= 2


def test_names_are_told_apart_and_healthy_set_ups_are_many() -> None:
    faults = [(fault.id, fault.name) for fault in FAULTS]
    assert len(set(faults)) == len(faults)
    assert len({healthy.name for healthy in HEALTHY}) == len(HEALTHY) >= 40
