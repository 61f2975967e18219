"""Which rank a process is, from the variables that launchers set."""

from __future__ import annotations

import pytest

from whet.engine.errors import WhetError
from whet.engine.parallel.topology import VARIABLES, Topology, here

RANK_1 = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
RENDEZVOUS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def seen(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Topology:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return here()


def test_alone_without_variables_and_where_they_say_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert here() == Topology(0, 0, 1) and here().is_main and here().alone
    assert seen(monkeypatch, WORLD_SIZE="1") == Topology()
    assert seen(monkeypatch, RANK="0", LOCAL_RANK="0", **RENDEZVOUS) == Topology()


def test_what_a_topology_writes_is_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Topology(rank=5, local_rank=1, world_size=8)
    assert seen(monkeypatch, **second.variables("10.0.0.1", 29500)) == second
    assert not second.is_main and not second.alone


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is missing"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "LOCAL_RANK is missing"),
        ({"RANK": "1", "LOCAL_RANK": "1"}, "does not hold"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "1"}, "does not hold"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is no number"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is no number"),
        ({"WORLD_SIZE": "0", "RANK": "0", "LOCAL_RANK": "0"}, "does not hold"),
        ({**RANK_1, "MASTER_ADDR": "a"}, "MASTER_PORT is missing"),
        ({**RANK_1, "MASTER_PORT": "70000"}, "is no port"),
        ({**RANK_1, "MASTER_PORT": "29500"}, "MASTER_ADDR is missing"),
    ],
)  # fmt: skip
def test_contradictory_variables_are_said_with_their_values(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], why: str
) -> None:
    with pytest.raises(WhetError, match=why) as caught:
        seen(monkeypatch, **variables)
    assert caught.value.code == "ranks.contradictory"
    assert all(f"{name}={value}" in caught.value.message for name, value in variables.items())
    assert caught.value.hint.count("RANK") == 2
