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


LONG = {("T07", "a rate next to nothing")}
"""Half a minute each: `make slow` and `make faults` try them."""


def _case(fault: Fault) -> object:
    marks = pytest.mark.slow if (fault.id, fault.name) in LONG else ()
    return pytest.param(fault, id=f"{fault.id}-{fault.name}", marks=marks)


@pytest.mark.parametrize("fault", [_case(fault) for fault in FAULTS])
def test_fault(fault: Fault, tmp_path: Path) -> None:
    outcome = try_fault(fault, tmp_path)
    assert outcome.caught, outcome.why


@pytest.mark.parametrize("healthy", HEALTHY, ids=lambda healthy: healthy.name)
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
