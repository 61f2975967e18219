"""Calls are counted over a sliding minute, by a clock that the test turns."""

from __future__ import annotations

import pytest

from whet.engine.api import WhetError
from whet.mcp_server.limits import LARGEST_CALL, WINDOW, Limits


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refused(limits: Limits, writes: bool = False) -> str:
    with pytest.raises(WhetError) as error:
        limits.admit({}, writes)
    assert error.value.code == "call.too_often"
    return str(error.value)


def test_the_minute_slides(clock: Clock) -> None:
    limits = Limits(calls=3, writes=3, clock=clock)
    for clock.now in (0.0, 20.0, 40.0):
        limits.admit({}, writes=False)
    clock.now = 59.0
    assert "Wait 1 seconds" in refused(limits) and "job_wait" in refused(limits)
    clock.now = WINDOW
    limits.admit({}, writes=False)
    assert "Wait 20 seconds" in refused(limits)


def test_a_refused_call_does_not_count(clock: Clock) -> None:
    limits = Limits(calls=1, writes=1, clock=clock)
    limits.admit({}, writes=False)
    for clock.now in (10.0, 30.0, 59.0):
        refused(limits)
    clock.now = WINDOW
    limits.admit({}, writes=False)


def test_writes_have_a_smaller_limit_of_their_own(clock: Clock) -> None:
    limits = Limits(calls=10, writes=2, clock=clock)
    for _ in range(2):
        limits.admit({}, writes=True)
    assert "2 writes" in refused(limits, writes=True)
    limits.admit({}, writes=False)


def test_large_arguments_are_refused_before_they_count(clock: Clock) -> None:
    limits = Limits(calls=1, writes=1, clock=clock)
    with pytest.raises(WhetError) as error:
        limits.admit({"text": "ä" * (LARGEST_CALL // 2)}, writes=True)
    assert error.value.code == "call.too_large" and f"{LARGEST_CALL:,}" in str(error.value)
    limits.admit({"text": "x" * (LARGEST_CALL - 100)}, writes=True)
